"""The folder that Hugging Face `datasets` writes with `save_to_disk`: Arrow files and a JSON description.

Only pyarrow reads it; no code of the data set runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from sfumato.data.format.faults import ImageFault
from sfumato.data.packing import source_files, table_source
from sfumato.data.packing.folder_names import FolderNames
from sfumato.data.packing.source import Opening, Source
from sfumato.data.packing.table_columns import ColumnOptions, chosen
from sfumato.errors import DataError

STATE, SPLITS = "state.json", "dataset_dict.json"


class HuggingFaceSource(ColumnOptions):
    """A data set saved by `datasets.Dataset.save_to_disk`."""

    PRECEDENCE: ClassVar[int] = 50

    kind: Literal["huggingface"] = Field("huggingface", description="A folder written by save_to_disk.")
    path: str = Field(description="The folder; for a DatasetDict with `split`.")
    split: str | None = Field(None, description="Which split of a DatasetDict, for example train.")

    @classmethod
    def recognises(cls, folder: FolderNames) -> bool:
        return folder.has(STATE, SPLITS)

    @property
    def name(self) -> str:
        return Path(self.path).expanduser().resolve().name + (f"-{self.split}" if self.split else "")

    def open(self, opening: Opening) -> Source:
        root = self._split(Path(self.path).expanduser())
        state = _json(root / STATE)
        if state.get("_indices_files") or state.get("_indices_data_files"):
            raise DataError(
                f"{root}: saved with an indices mapping; call flatten_indices() before save_to_disk"
            )
        try:
            paths = [source_files.inside(root, str(file["filename"])) for file in state["_data_files"]]
        except (KeyError, TypeError, ImageFault) as error:
            raise DataError(f"{root / STATE}: does not list its files as save_to_disk does") from error
        if not paths:
            raise DataError(f"{root}: lists no files")
        for path in paths:
            if not path.is_file():
                raise DataError(f"{path}: missing")
        columns = chosen(self, table_source.opened(paths[0], source_files.state(paths[0])).schema, str(root))
        return table_source.of_files(paths, columns, f"Hugging Face data set {root.name}", root)

    def _split(self, root: Path) -> Path:
        if not (root / SPLITS).is_file():
            if not (root / STATE).is_file():
                raise DataError(
                    f"{root}: neither {STATE} nor {SPLITS} there, so not a folder written by save_to_disk"
                )
            return root
        splits = [str(split) for split in _json(root / SPLITS).get("splits", [])]
        if self.split not in splits:
            said = "no split chosen" if self.split is None else f"no split {self.split!r}"
            raise DataError(f"{root}: {said}; set split to one of {', '.join(splits)}")
        return root / str(self.split)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a JSON object")
    return content


COMPONENT = HuggingFaceSource

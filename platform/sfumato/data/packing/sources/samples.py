"""A folder that `sfumato sample` wrote, as a data set: samples with texts or classes, marked as generated.

For class images of DreamBooth (Ruiz et al. 2023, sec. 3.2), and other sets that a model draws.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from sfumato.data.packing import source_files
from sfumato.data.packing.source import Opening, Source, SourceConfig
from sfumato.data.packing.sources.listing import ListedSource
from sfumato.errors import DataError

LINES = "samples.jsonl"
TOLD = ("model", "model_digest", "seed", "index")
"""What each image's metadata keep of its line, besides `generated`."""


class SamplesSource(SourceConfig):
    """Samples of a model, with what they were asked to show."""

    kind: Literal["samples"] = Field("samples", description="A folder that `sfumato sample` wrote.")
    path: str = Field(description="The folder, with samples.jsonl in it.")

    @property
    def name(self) -> str:
        return Path(self.path).name

    def open(self, opening: Opening) -> Source:
        folder = Path(self.path).expanduser()
        rows = [row for row in _rows(folder / LINES) if row.get("file")]
        if not rows:
            raise DataError(f"{folder / LINES} lists no images; draw some with `sfumato sample`")
        names = [str(row["file"]) for row in rows]
        for name in names:
            source_files.inside(folder, name)
        labels, classes = source_files.numbered([row.get("class") for row in rows], (), str(folder))
        return ListedSource(
            folder,
            names,
            [_text(row) for row in rows],
            [{"generated": True, **{key: row.get(key) for key in TOLD}} for row in rows],
            labels,
            classes,
            (),
            f"samples of {rows[0].get('model', 'a model')}",
            source_files.unique_keys(source_files.without_suffix(name) for name in names),
        )


def _rows(file: Path) -> list[dict[str, Any]]:
    try:
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as the lines of samples: {error}") from error
    if not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{file}: holds a line that is no object; name a folder that `sfumato sample` wrote")
    return rows


def _text(row: dict[str, Any]) -> str | None:
    conditions = row.get("conditions")
    text = conditions.get("text") if isinstance(conditions, dict) else None
    return text if isinstance(text, str) else None


COMPONENT = SamplesSource

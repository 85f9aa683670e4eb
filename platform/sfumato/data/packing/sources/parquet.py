"""Parquet files with a column of encoded images, as the Hugging Face hub stores its data sets.

Packing mixes the samples, but a Parquet file can only be read a row group at a time. So the needed columns
are first laid out as Arrow files in the scratch folder, from which rows are read in any order.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from sfumato.data.packing import source_files, table_source
from sfumato.data.packing.folder_names import FolderNames
from sfumato.data.packing.source import Opening, Source
from sfumato.data.packing.table_columns import ColumnOptions, chosen
from sfumato.data.packing.tasks import Tally
from sfumato.errors import DataError

_ROWS = 256


class ParquetSource(ColumnOptions):
    """Rows of Parquet files of one schema."""

    FILES: ClassVar[tuple[str, ...]] = (".parquet",)
    PRECEDENCE: ClassVar[int] = 20

    kind: Literal["parquet"] = Field("parquet", description="Parquet files with images in a column.")
    path: str = Field(description="A file, or a folder of files at any depth.")
    split: str | None = Field(
        None, description="In a folder: only files whose names start with this, for example train."
    )

    @classmethod
    def recognises(cls, folder: FolderNames) -> bool:
        return folder.anywhere(".parquet")

    @property
    def name(self) -> str:
        return Path(self.path).expanduser().resolve().stem + (f"-{self.split}" if self.split else "")

    def open(self, opening: Opening) -> Source:
        root = Path(self.path).expanduser()
        found = self._files(root)
        schema = _schema(found[0])
        columns = chosen(self, schema, str(found[0]))
        for path in found[1:]:
            if missing := [name for name in columns.all if name not in _schema(path).names]:
                raise DataError(f"{path}: no column {missing[0]!r}, which {found[0].name} has")
        tasks = [partial(_laid_out, path, columns.all, opening.scratch, n) for n, path in enumerate(found)]
        total = sum(pq.read_metadata(path).num_rows for path in found)
        laid_out = list(opening.run(tasks, Tally(opening.progress, total)))
        base = root if root.is_dir() else root.parent
        return table_source.of_files(laid_out, columns, f"Parquet {root.name}", base)

    def _files(self, root: Path) -> list[Path]:
        if root.is_file():
            return [root]
        if not root.is_dir():
            raise DataError(f"{root}: no such file or folder")
        found = sorted(path for path in root.rglob("*.parquet") if path.name.startswith(self.split or ""))
        if not found:
            raise DataError(
                f"{root}: no .parquet files" + (f" of split {self.split!r}" if self.split else "")
            )
        return found


def _schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet") from error


def _laid_out(path: Path, columns: list[str], scratch: Path, number: int) -> Iterator[int | Path]:
    """Writes the columns of one file as Arrow, unless they are already written."""
    scratch.mkdir(parents=True, exist_ok=True)
    target = scratch / f"{number:06d}-{source_files.state(path)}.arrow"
    if target.is_file():
        yield pq.read_metadata(path).num_rows
        yield target
        return
    draft = target.with_suffix(".part")
    try:
        with pq.ParquetFile(path) as source:
            schema = pa.schema([source.schema_arrow.field(name) for name in columns])
            with pa.OSFile(str(draft), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
                for batch in source.iter_batches(_ROWS, columns=columns):
                    writer.write_batch(batch.select(columns))
                    yield batch.num_rows
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise DataError(f"{path}: damaged: {str(error).splitlines()[0]}") from error
    draft.rename(target)
    yield target


COMPONENT = ParquetSource

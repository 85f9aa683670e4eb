"""A source over Arrow files, whose rows are read from memory maps: any order costs the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sfumato.data.format.column_sources import WeightedTexts, value_of
from sfumato.data.format.columns import TEXT
from sfumato.data.format.faults import Fault, ImageFault
from sfumato.data.packing import source_files
from sfumato.data.packing.resizing import Look
from sfumato.data.packing.source import I64, Further, Record
from sfumato.data.packing.table_columns import Columns
from sfumato.errors import DataError


@dataclass(frozen=True, slots=True)
class TableSource:
    """Rows of Arrow files. `parts_N` and `rows_N` int64 [N] give each sample's file and row."""

    paths: tuple[Path, ...]
    states: tuple[str, ...]
    columns: Columns
    parts_N: I64
    rows_N: I64
    keys: Sequence[str]
    labels: I64 | None
    classes: tuple[str, ...]
    description: str
    base: Path | None
    """The folder of images given by path; None refuses those."""
    faults: Sequence[Fault] = ()
    uniform: Look | None = None

    def only(self, rows: Sequence[int]) -> TableSource:
        chosen = np.asarray(rows, np.int64)
        return TableSource(
            self.paths,
            self.states,
            self.columns,
            self.parts_N[chosen],
            self.rows_N[chosen],
            [self.keys[row] for row in rows],
            None if self.labels is None else self.labels[chosen],
            self.classes,
            self.description,
            self.base,
        )

    def name(self, row: int) -> str:
        return f"row {self.rows_N[row]} ({self.keys[row]})"

    def mark(self, row: int) -> str:
        return f"{self.states[self.parts_N[row]]}#{self.rows_N[row]}"

    def read(self, row: int) -> Record:
        part = self.parts_N[row]
        table = opened(self.paths[part], self.states[part])
        at = int(self.rows_N[row])
        image = self._image(table.column(self.columns.image)[at].as_py())
        caption = None if self.columns.caption is None else table.column(self.columns.caption)[at].as_py()
        meta = {name: table.column(name)[at].as_py() for name in self.columns.keep}
        extra = self._extra(table, at)
        if TEXT in self.columns.further:
            texts = extra.get(TEXT)
            caption = texts.texts[0] if isinstance(texts, WeightedTexts) else None
        return Record(image, None if caption is None else str(caption), meta or None, extra)

    def _extra(self, table: pa.Table, at: int) -> dict[str, Further]:
        """A row's values of the further columns."""
        extra: dict[str, Further] = {}
        for name, source in self.columns.further.items():
            raw = table.column(source.field)[at].as_py()
            if raw is None:
                continue
            if source.kind == "image":
                extra[name] = self._image(raw)
                continue
            weights = None if source.weights is None else table.column(source.weights)[at].as_py()
            value = value_of(name, source, raw, weights)
            if value is not None:
                extra[name] = value
        return extra

    def _image(self, value: Any) -> bytes | Path:
        if isinstance(value, dict):
            path = value.get("path")
            value = value.get("bytes")
            if value is None and isinstance(path, str):
                return self._by_path(path)
        if not isinstance(value, bytes):
            raise ImageFault("its image is null")
        return value

    def _by_path(self, path: str) -> Path:
        if self.base is None:
            raise ImageFault(f"its image is only named ({path[:80]}), not stored")
        found = source_files.inside(self.base, path)
        if not found.is_file():
            raise ImageFault(f"its file {path[:80]} is missing")
        return found


@lru_cache(maxsize=256)
def opened(path: Path, state: str) -> pa.Table:
    """An Arrow stream or file in this `state`, mapped into memory. Raises DataError."""
    try:
        mapped = pa.memory_map(str(path))
        try:
            return pa.ipc.open_stream(mapped).read_all()
        except pa.ArrowInvalid:
            return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: cannot be read as Arrow") from error


def of_files(
    paths: Sequence[Path],
    columns: Columns,
    description: str,
    base: Path | None,
) -> TableSource:
    """All rows of some Arrow files of one schema."""
    states = tuple(source_files.state(path) for path in paths)
    tables = [opened(path, state) for path, state in zip(paths, states, strict=True)]
    counts = [table.num_rows for table in tables]
    if not sum(counts):
        raise DataError(f"{description}: holds no rows")
    parts_N = np.repeat(np.arange(len(paths)), counts)
    rows_N = np.concatenate([np.arange(count) for count in counts])
    labels, classes = (None, ()) if columns.label is None else _labels(tables, columns, description)
    keys = _keys(tables, columns, counts, description)
    return TableSource(
        tuple(paths), states, columns, parts_N, rows_N, keys, labels, classes, description, base
    )


def _labels(tables: Sequence[pa.Table], columns: Columns, where: str) -> tuple[I64 | None, tuple[str, ...]]:
    assert columns.label is not None
    values: list[Any] = []
    for table in tables:
        column = table.column(columns.label)
        kind = column.type
        if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise DataError(f"{where}: column {columns.label} is {kind}; classes are numbers or names")
        values += column.to_pylist()
    # Hugging Face writes -1 if a split has no labels.
    labels = [None if value == -1 else value for value in values]
    return source_files.numbered(labels, columns.class_names, f"{where}, column {columns.label}")


def _keys(tables: Sequence[pa.Table], columns: Columns, counts: Sequence[int], where: str) -> list[str]:
    if columns.key is None:
        return [f"{row:09d}" for row in range(sum(counts))]
    names = [str(value) for table in tables for value in table.column(columns.key).to_pylist()]
    bad = next(
        (name for name in names if not name or not name.isprintable() or ".." in name or name[0] == "/"), None
    )
    if bad is not None:
        raise DataError(f"{where}: column {columns.key}: {bad[:40]!a} cannot name a sample")
    return source_files.unique_keys(names)

"""A CSV or JSONL file that names image files, with columns for classes, captions and metadata."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from pydantic import Field

from sfumato.data.format.column_sources import ColumnSource, Sources, WeightedTexts, value_of
from sfumato.data.format.columns import TEXT
from sfumato.data.format.faults import Fault, ImageFault
from sfumato.data.packing import source_files
from sfumato.data.packing.resizing import Look
from sfumato.data.packing.source import I64, Further, Opening, Record, Source, SourceConfig, Words
from sfumato.errors import DataError

_FILE = ("file_name", "file", "filename", "path", "image", "image_path")
_LABEL = ("label", "class", "category")
_CAPTION = ("caption", "text", "prompt")
_NONE: Sources = MappingProxyType({})
Rows = list[dict[str, Any]]


class ListingSource(SourceConfig):
    """The files that a table names, relative to its own folder or `root`."""

    TAKES_COLUMNS: ClassVar[bool] = True
    NEIGHBOURS: ClassVar[bool] = True
    FILES: ClassVar[tuple[str, ...]] = (".csv", ".tsv", ".jsonl")

    kind: Literal["listing"] = Field("listing", description="A CSV or JSONL file that names image files.")
    path: str = Field(description="The file: .csv or .tsv with a header line, or .jsonl.")
    root: str | None = Field(None, description="Folder that the names are relative to; null: the file's own.")
    file: str | None = Field(None, description=f"Column of the names; null: the first of {', '.join(_FILE)}.")
    label: str | None = Field(
        None, description="Column of the classes; null: the usual one; none: no classes."
    )
    caption: str | None = Field(None, description="Column of the captions; null: the usual one; none: none.")
    key: str | None = Field(None, description="Column of unique names; null: the files' own names.")
    keep: Words = Field((), description="Columns to keep as the samples' JSON metadata.")
    classes: Words = Field((), description="Names of the classes in order; empty: those that occur, sorted.")

    @property
    def name(self) -> str:
        return Path(self.path).stem

    def open(self, opening: Opening) -> Source:
        path = Path(self.path).expanduser()
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        rows = _rows(path)
        if not rows:
            raise DataError(f"{path}: lists no files")
        present = list(dict.fromkeys(name for row in rows for name in row))
        file = _column(path, present, self.file, _FILE, "file")
        if file is None:
            raise DataError(f"{path}: no column of file names; it has {', '.join(present)}: set file")
        label = _column(path, present, self.label, _LABEL, "label")
        caption = _column(path, present, self.caption, _CAPTION, "caption")
        key = _column(path, present, self.key, (), "key")
        for name in self.keep:
            _column(path, present, name, (), "keep")
        for name, source in self.columns.items():
            if source.field is None:
                raise DataError(f"{path}: columns: {name}: give the field of the listing that it comes from")
            _column(path, present, source.field, (), f"columns: {name}")
        root = Path(self.root).expanduser() if self.root else path.parent
        rows, faults = _usable(rows, root, file, key, path)
        labels, classes = source_files.numbered([_label(row, label) for row in rows], self.classes, str(path))
        keys = source_files.unique_keys(
            str(row[key]) if key else source_files.without_suffix(str(row[file])) for row in rows
        )
        texts = [_text(row.get(caption)) if caption else None for row in rows]
        metas = [{name: row.get(name) for name in self.keep} or None for row in rows]
        names = [str(row[file]) for row in rows]
        cells = [_cells(row, self.columns) for row in rows]
        if (several := self.columns.get(TEXT)) is not None:
            texts = [_first(row, several) for row in rows]
        return ListedSource(
            root,
            names,
            texts,
            metas,
            labels,
            classes,
            faults,
            f"listing {path.name}",
            keys,
            self.columns,
            cells,
        )


class ListedSource:
    """Files below a root, with the values of their rows."""

    uniform: Look | None = None

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        captions: Sequence[str | None],
        metas: Sequence[dict[str, Any] | None],
        labels: I64 | None,
        classes: tuple[str, ...],
        faults: Sequence[Fault],
        description: str,
        keys: Sequence[str],
        columns: Sources = _NONE,
        cells: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._root, self._names, self._captions, self._metas = root, names, captions, metas
        self._columns, self._cells = columns, cells
        self.labels, self.classes, self.faults, self.keys = labels, classes, faults, keys
        self.description = description

    def only(self, rows: Sequence[int]) -> ListedSource:
        return ListedSource(
            self._root,
            [self._names[row] for row in rows],
            [self._captions[row] for row in rows],
            [self._metas[row] for row in rows],
            None if self.labels is None else self.labels[list(rows)],
            self.classes,
            (),
            self.description,
            [self.keys[row] for row in rows],
            self._columns,
            [self._cells[row] for row in rows] if self._columns else (),
        )

    def name(self, row: int) -> str:
        return self._names[row]

    def mark(self, row: int) -> str:
        said = json.dumps([self._captions[row], self._metas[row]], default=str)
        mark = f"{source_files.state(self._root / self._names[row])}|{said}"
        if not self._columns:
            return mark
        cells = self._cells[row]
        fields = [column.field or "" for column in self._columns.values() if column.kind == "image"]
        images = [cells[field] for field in fields if cells.get(field)]
        states = [source_files.state(self._root / str(name)) for name in images]
        return f"{mark}|{json.dumps([cells, states], default=str)}"

    def read(self, row: int) -> Record:
        path = source_files.inside(self._root, self._names[row])
        if not path.is_file():
            raise ImageFault("no such file")
        return Record(path, self._captions[row], self._metas[row], self._extra(row))

    def _extra(self, row: int) -> dict[str, Further]:
        extra: dict[str, Further] = {}
        for name, source in self._columns.items():
            raw = self._cells[row].get(source.field or "")
            value: Further | None = None
            if source.kind == "image" and raw:
                value = source_files.inside(self._root, str(raw))
                if not value.is_file():
                    raise ImageFault(f"its {name} {str(raw)[:80]} is missing")
            elif source.kind != "image":
                value = value_of(name, source, raw, self._cells[row].get(source.weights or ""))
            if value is not None:
                extra[name] = value
        return extra


def _cells(row: Mapping[str, Any], columns: Sources) -> dict[str, Any]:
    """A row's values of the further columns; an empty cell gives none."""
    fields = [field for source in columns.values() for field in (source.field, source.weights) if field]
    return {field: None if row.get(field) == "" else row.get(field) for field in fields}


def _first(row: Mapping[str, Any], source: ColumnSource) -> str | None:
    """The first of several texts, which represents a sample if one is wanted."""
    try:
        found = value_of(TEXT, source, _cells(row, {TEXT: source}).get(source.field or ""))
    except ImageFault:
        return None  # reading the sample will report what is wrong
    return found.texts[0] if isinstance(found, WeightedTexts) else None


def _rows(path: Path) -> Rows:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".jsonl":
                return list(_json_rows(file, path))
            reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
            rows: Rows = [dict(row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table: {error}") from error
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise DataError(f"{path}: line {number}: not as many cells as the header has")
    return rows


def _json_rows(lines: Any, path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: line {number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}: line {number}: not a JSON object")
        yield row


def _column(
    path: Path, present: Sequence[str], asked: str | None, usual: Sequence[str], option: str
) -> str | None:
    if asked == "none":
        return None
    if asked is None:
        return next((name for name in usual if name in present), None)
    if asked not in present:
        raise DataError(f"{path}: no column {asked!r} (option {option}); it has {', '.join(present)}")
    return asked


def _usable(rows: Rows, root: Path, file: str, key: str | None, path: Path) -> tuple[Rows, list[Fault]]:
    good, faults = [], []
    for number, row in enumerate(rows, start=1):
        name = row.get(file)
        try:
            if not isinstance(name, str) or not name.isprintable():
                raise ImageFault("names no file")
            source_files.inside(root, name)
            if key is not None:
                _check_key(row.get(key))
            good.append(row)
        except ImageFault as fault:
            faults.append(Fault(str(path), f"row {number}", str(fault)))
    return good, faults


def _check_key(key: Any) -> None:
    if not isinstance(key, str | int) or not str(key).isprintable() or not str(key):
        raise ImageFault("its key is not text")
    if str(key).startswith("/") or ".." in str(key).split("/") or "\\" in str(key):
        raise ImageFault("its key leads out of the data set")


def _label(row: dict[str, Any], column: str | None) -> source_files.Label:
    value = row.get(column) if column else None
    if value is None or value == "":
        return None
    return value if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _text(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)


COMPONENT = ListingSource

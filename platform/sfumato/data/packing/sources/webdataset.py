"""The samples of an existing WebDataset: to reshard it, resize or re-encode its images, or take a part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import BinaryIO, ClassVar, Literal

import numpy as np
from pydantic import Field

from sfumato.data.format.column_sources import ColumnSource, Sources
from sfumato.data.format.faults import Fault, ImageFault
from sfumato.data.format.samples import Fields, Row, SampleReader
from sfumato.data.format.tar import Member
from sfumato.data.packing import source_files
from sfumato.data.packing.folder_names import FolderNames
from sfumato.data.packing.further import loaded_npy
from sfumato.data.packing.resizing import Look
from sfumato.data.packing.source import I64, Further, Opening, Record, Source, SourceConfig, Words
from sfumato.data.packing.tasks import Tally
from sfumato.errors import DataError

_OPEN_FILES = 64


class WebDatasetSource(SourceConfig):
    """Tar files of a WebDataset in one folder."""

    TAKES_COLUMNS: ClassVar[bool] = True
    FILES: ClassVar[tuple[str, ...]] = (".tar",)
    PRECEDENCE: ClassVar[int] = 30

    kind: Literal["webdataset"] = Field("webdataset", description="Tar files of another WebDataset.")
    path: str = Field(description="A tar, or the folder of the tars.")
    shards: str = Field("*.tar", description="In a folder: which files, for example 'train-*.tar'.")
    image: str | None = Field(None, description=Fields.model_fields["image"].description)
    label: str = Field("cls", description=Fields.model_fields["label"].description)
    caption: str = Field("txt", description=Fields.model_fields["caption"].description)
    classes: Words = Field((), description="Names of the classes in order; empty: those that occur.")

    @classmethod
    def recognises(cls, folder: FolderNames) -> bool:
        return folder.top(".tar")

    @property
    def name(self) -> str:
        return Path(self.path).expanduser().resolve().stem

    def open(self, opening: Opening) -> Source:
        paths = tars(Path(self.path).expanduser(), self.shards)
        fields = Fields(image=self.image, label=self.label, caption=self.caption, columns=self.columns)
        tasks = [partial(_listed, path, fields) for path in paths]
        listed = list(opening.run(tasks, Tally(opening.progress, None)))
        faults = [fault for part in listed for fault in part.faults]
        rows = [(n, row) for n, part in enumerate(listed) for row in part.rows]
        if not rows:
            raise DataError(f"{self.path}: no sample that can be used" + (f"; {faults[0]}" if faults else ""))
        rows, twice = _without_twins(paths, rows)
        where = str(self.path)
        labels, classes = source_files.numbered([row.label for _, row in rows], self.classes, where)
        keys = source_files.unique_keys(row.key for _, row in rows)
        description = f"WebDataset {Path(self.path).resolve().name}"
        states = tuple(source_files.state(path) for path in paths)
        return TarSource(
            tuple(paths),
            states,
            tuple(rows),
            keys,
            labels,
            classes,
            description,
            (*faults, *twice),
            columns=self.columns,
        )


def tars(root: Path, pattern: str) -> list[Path]:
    """The shards that a path means, sorted. Raises DataError."""
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise DataError(f"{root}: no such file or folder")
    check_pattern(pattern)
    found = sorted(path for path in root.glob(pattern) if path.is_file())
    if not found:
        raise DataError(f"{root}: no file {pattern} there")
    return found


def check_pattern(pattern: str) -> None:
    """Raises DataError unless it is a pattern of file names in one folder."""
    if "/" in pattern or "\\" in pattern:
        raise DataError(
            f"shards={pattern!r}: give a pattern of file names in one folder, for example 'train-*.tar'"
        )


@dataclass(frozen=True, slots=True)
class _Listed:
    rows: list[Row]
    faults: list[Fault]


def _listed(path: Path, fields: Fields) -> Iterator[int | _Listed]:
    rows: list[Row] = []
    faults: list[Fault] = []
    with path.open("rb") as file:
        for found in SampleReader(fields).rows(file, path.stat().st_size, str(path)):
            if isinstance(found, Fault):
                faults.append(found)
            else:
                rows.append(found)
    yield len(rows)
    yield _Listed(rows, faults)


def _without_twins(
    paths: Sequence[Path], rows: Sequence[tuple[int, Row]]
) -> tuple[list[tuple[int, Row]], list[Fault]]:
    """The first sample of every key, over all shards, and faults for the others."""
    first: dict[str, int] = {}
    good, faults = [], []
    for part, row in rows:
        if row.key in first:
            reason = f"its key has appeared before, in {paths[first[row.key]].name}"
            faults.append(Fault(str(paths[part]), row.key, reason))
        else:
            first[row.key] = part
            good.append((part, row))
    return good, faults


@dataclass(frozen=True, slots=True)
class TarSource:
    """Samples in tars, read by their offsets."""

    paths: tuple[Path, ...]
    states: tuple[str, ...]
    rows: tuple[tuple[int, Row], ...]
    keys: Sequence[str]
    labels: I64 | None
    classes: tuple[str, ...]
    description: str
    faults: Sequence[Fault] = ()
    uniform: Look | None = None
    columns: Sources = field(default_factory=dict)

    def only(self, rows: Sequence[int]) -> TarSource:
        return TarSource(
            self.paths,
            self.states,
            tuple(self.rows[row] for row in rows),
            [self.keys[row] for row in rows],
            None if self.labels is None else self.labels[np.asarray(rows, np.int64)],
            self.classes,
            self.description,
            columns=self.columns,
        )

    def name(self, row: int) -> str:
        part, sample = self.rows[row]
        return f"{self.paths[part].name}: {sample.key}"

    def mark(self, row: int) -> str:
        part, sample = self.rows[row]
        return f"{self.states[part]}#{sample.image.offset}"

    def read(self, row: int) -> Record:
        part, sample = self.rows[row]
        file = _opened(self.paths[part], self.states[part])
        file.seek(sample.image.offset)
        data = file.read(sample.image.size)
        if len(data) < sample.image.size:
            raise ImageFault("the shard ends before it")
        extra: dict[str, Further] = {}
        for name, value in sample.extra.items():
            extra[name] = (
                _of_member(file, name, value, self.columns[name]) if isinstance(value, Member) else value
            )
        return Record(data, sample.caption, sample.meta, extra)


def _of_member(file: BinaryIO, name: str, member: Member, source: ColumnSource) -> Further:
    """The bytes of an image, or the numbers of an npy file. Raises ImageFault."""
    file.seek(member.offset)
    content = file.read(member.size)
    return content if source.kind == "image" else loaded_npy(name, content)


@lru_cache(maxsize=_OPEN_FILES)
def _opened(path: Path, state: str) -> BinaryIO:
    """Kept open, since samples come in any order; a rewritten file has another `state`."""
    return path.open("rb")


COMPONENT = WebDatasetSource

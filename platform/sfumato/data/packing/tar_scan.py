"""Scans one existing tar: its checksum, and what its samples and their further columns look like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from sfumato.data.format.faults import Fault, ImageFault
from sfumato.data.format.images import bombs_refused, packed_look
from sfumato.data.format.manifest import file_digest
from sfumato.data.format.samples import Fields, Row, SampleReader
from sfumato.data.format.tar import Member
from sfumato.data.packing.further import Look, look_of, look_of_member
from sfumato.data.storage.filesystems import above, below
from sfumato.data.storage.read import local_copy

_TELL = 256
Size = tuple[int, int]


class Sample(NamedTuple):
    row: Row
    size: Size
    grey: bool
    looks: Mapping[str, Look]
    """The looks of its further columns."""


@dataclass
class Tar:
    """The findings of a task about one tar."""

    path: str
    sha256: str
    bytes: int
    samples: list[Sample] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)

    @property
    def name(self) -> str:
        return above(self.path)[1]


@dataclass(frozen=True, slots=True)
class ScanTask:
    folder: str
    name: str
    fields: Fields
    max_pixels: int

    def __call__(self) -> Iterator[int | Tar]:
        where = below(self.folder, self.name)
        with local_copy(self.folder, self.name) as path:
            result = Tar(where, file_digest(str(path.parent), path.name), path.stat().st_size)
            yield from self._samples(path, result)
        yield result

    def _samples(self, path: Path, result: Tar) -> Iterator[int]:
        where, reader = result.path, SampleReader(self.fields)
        told = count = 0
        with path.open("rb") as file, bombs_refused():

            def read(member: Member) -> bytes:
                file.seek(member.offset)
                return file.read(member.size)

            for count, row in enumerate(reader.rows(file, result.bytes, where), start=1):
                if isinstance(row, Fault):
                    result.faults.append(row)
                    continue

                try:
                    width, height, grey = packed_look(read(row.image), self.max_pixels)
                    looks = {
                        name: look_of_member(name, self.fields.columns[name], read(value), self.max_pixels)
                        if isinstance(value, Member)
                        else look_of(name, self.fields.columns[name], value)
                        for name, value in row.extra.items()
                    }
                    result.samples.append(Sample(row._replace(meta=None), (width, height), grey, looks))
                except ImageFault as fault:
                    result.faults.append(Fault(where, row.key, str(fault)))
                if count - told >= _TELL:
                    yield count - told
                    told = count
        result.ignored = reader.ignored
        yield count - told

"""Scans one existing tar: its checksum, and what its samples and their further columns look like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from sfumato.data.format.faults import Fault, ImageFault
from sfumato.data.format.images import bombs_refused, decoded, packed_look
from sfumato.data.format.manifest import ImageInfo, file_digest
from sfumato.data.format.samples import Fields, Row, SampleReader
from sfumato.data.format.tar import Member
from sfumato.data.packing.dedupe import print_of_pixels
from sfumato.data.packing.further import Look, look_of, look_of_member
from sfumato.data.packing.opt_out import OptOut, licence_of, url_of
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
    licence: str = ""
    """The licence in its metadata."""


@dataclass
class Tar:
    """The findings of a task about one tar."""

    path: str
    sha256: str
    bytes: int
    samples: list[Sample] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    opted_out: list[tuple[str, str]] = field(default_factory=list)
    """Key of a sample that an opt-out list names, and the kind of the entry."""
    urls: int = 0
    """How many samples have an address in their metadata."""

    @property
    def name(self) -> str:
        return above(self.path)[1]


@dataclass(frozen=True, slots=True)
class ScanTask:
    folder: str
    name: str
    fields: Fields
    max_pixels: int
    opt_out: OptOut = field(default_factory=OptOut)

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
                    image = read(row.image)
                    width, height, grey = packed_look(image, self.max_pixels)
                    result.urls += url_of(row.meta) is not None
                    if (reason := self._opted_out(row, image, grey)) is not None:
                        result.opted_out.append((row.key, reason))
                        continue
                    looks = {
                        name: look_of_member(name, self.fields.columns[name], read(value), self.max_pixels)
                        if isinstance(value, Member)
                        else look_of(name, self.fields.columns[name], value)
                        for name, value in row.extra.items()
                    }
                    sample = Sample(
                        row._replace(meta=None), (width, height), grey, looks, licence_of(row.meta)
                    )
                    result.samples.append(sample)
                except ImageFault as fault:
                    result.faults.append(Fault(where, row.key, str(fault)))
                if count - told >= _TELL:
                    yield count - told
                    told = count
        result.ignored = reader.ignored
        yield count - told

    def _opted_out(self, row: Row, image: bytes, grey: bool) -> str | None:
        """The kind of the entry of an opt-out list that names the sample. Raises ImageFault."""
        if not self.opt_out.lists:
            return None
        seen = None
        if self.opt_out.prints:
            width, height, _ = packed_look(image, self.max_pixels)
            look = ImageInfo(channels=1 if grey else 3, height=height, width=width)
            seen = print_of_pixels(decoded(image, look))
        return self.opt_out.reason((row.key,), image, row.meta, seen)

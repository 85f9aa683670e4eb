"""Packs one shard: a task that writes a tar and its index, and reports what it wrote."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.data.format import index
from sfumato.data.format.arrays import npy
from sfumato.data.format.column_sources import Sources
from sfumato.data.format.columns import ColumnInfo
from sfumato.data.format.faults import Fault, ImageFault
from sfumato.data.format.images import bombs_refused
from sfumato.data.format.manifest import ImageInfo, ShardInfo
from sfumato.data.format.samples import Fields
from sfumato.data.format.tar import TarWriter
from sfumato.data.packing.further import Look, as_fields, info_of, look_of, packed_sources
from sfumato.data.packing.layout import ShardPlan
from sfumato.data.packing.opt_out import licence_of
from sfumato.data.packing.resizing import Encoded, Geometry, Size, look
from sfumato.data.packing.resizing import Look as Header
from sfumato.data.packing.source import NO_LABEL, Record, Source, as_image
from sfumato.data.storage.write import publish, workplace
from sfumato.errors import DataError

_TELL = 32


@dataclass(frozen=True, slots=True)
class ShardResult:
    """A packed shard, or (`info` None) one of which no sample could be used."""

    plan: ShardPlan
    info: ShardInfo | None
    captions: int
    faults: tuple[Fault, ...]
    columns: Mapping[str, ColumnInfo] = field(default_factory=dict, hash=False)
    """Its entries for the further columns."""
    licences: Mapping[str, int] = field(default_factory=dict, hash=False)
    """Samples by the licence in their metadata, the empty name for none."""


@dataclass(frozen=True, slots=True)
class ShardTask:
    """Packs the samples of `part`, which are the rows of `plan`, into `folder` (a folder or URI).

    Stops after more than `max_faults` samples that cannot be used; the caller then fails as a whole, so
    that nothing of the shard stays. The file appears under its name when all of it is written.
    """

    part: Source
    plan: ShardPlan
    folder: str
    max_faults: int
    columns: Sources = field(default_factory=dict, hash=False)

    def __call__(self) -> Iterator[int | ShardResult]:
        name = self.plan.name
        try:
            with workplace(self.folder) as place:
                draft = place / f"{name}.part"
                try:
                    result = yield from self._packed(place / name, draft)
                finally:
                    draft.unlink(missing_ok=True)
                if result.info is not None:
                    publish(self.folder, place, [name, index.file_name(name)])
                yield result
        except OSError as error:
            raise DataError(f"{self.folder}: {name}: cannot be written: {error.strerror or error}") from error

    def _packed(self, target: Path, draft: Path) -> Generator[int, None, ShardResult]:
        faults: list[Fault] = []
        sizes: set[Size] = set()
        looks: dict[str, list[Look]] = {name: [] for name in self.columns}
        licences = Counter[str]()
        told = count = 0
        with draft.open("wb") as file, bombs_refused():
            tar = TarWriter(file)
            for row, key in enumerate(self.part.keys):
                try:
                    sizes.add(self._add(tar, row, key, looks, licences))
                    count += 1
                except ImageFault as fault:
                    faults.append(Fault(self.part.description, self.part.name(row), str(fault)))
                    if len(faults) > self.max_faults:
                        break
                if row + 1 - told == _TELL:
                    yield _TELL
                    told += _TELL
            digest = tar.finish()
            file.flush()
            os.fsync(file.fileno())
        yield len(self.part.keys) - told
        if not count or len(faults) > self.max_faults:
            return ShardResult(self.plan, None, 0, tuple(faults))
        (size,) = sizes
        image = ImageInfo(channels=self.plan.geometry.channels, height=size[1], width=size[0])
        info = ShardInfo(name=target.name, samples=count, bytes=tar.bytes, sha256=digest, image=image)
        os.replace(draft, target)
        built = index.build(target.parent, target.name, Fields(columns=packed_sources(self.columns)))
        built.save(target.parent, info)
        columns = {
            name: found for name, source in self.columns.items() if (found := info_of(source, looks[name]))
        }
        captions = len(built) - built.captions.null_count
        return ShardResult(self.plan, info, captions, tuple(faults), columns, dict(licences))

    def _add(
        self, tar: TarWriter, row: int, key: str, looks: dict[str, list[Look]], licences: Counter[str]
    ) -> Size:
        record = self.part.read(row)
        extension, data, size = self.plan.geometry.encode(record.image, key)
        members, fields, found = self._further(key, record, looks)
        meta = {**(record.meta or {}), **fields}
        tar.add(f"{key}.{extension}", data)
        labels = self.part.labels
        if labels is not None and labels[row] != NO_LABEL:
            tar.add(f"{key}.cls", str(labels[row]).encode())
        if record.caption is not None:
            tar.add(f"{key}.txt", record.caption.encode("utf-8", "replace"))
        for name, content in members.items():
            tar.add(f"{key}.{name}", content)
        if meta:
            said = json.dumps(meta, ensure_ascii=False, sort_keys=True, default=str)
            tar.add(f"{key}.json", said.encode("utf-8", "replace"))
        for name, one in found.items():
            looks[name].append(one)
        licences[licence_of(record.meta)] += 1
        return size

    def _further(
        self, key: str, record: Record, looks: Mapping[str, list[Look]]
    ) -> tuple[dict[str, bytes], dict[str, Any], dict[str, Look]]:
        """The members and JSON fields of a sample's further columns, and what its values look like.

        Raises ImageFault for a value that differs in type or shape from the others of the shard.
        """
        members: dict[str, bytes] = {}
        fields: dict[str, Any] = {}
        found: dict[str, Look] = {}
        geometries = dict(self.plan.further)
        for name, value in record.extra.items():
            source = self.columns[name]
            if source.kind == "image":
                geometry = geometries[name]
                extension, content, size = _encoded(geometry, name, as_image(value), record.image, key)
                members[f"{name}.{extension}"] = content
                found[name] = Look("uint8", (geometry.channels, size[1], size[0]))
            else:
                assert not isinstance(value, bytes | Path), "a value"
                found[name] = look_of(name, source, value)
                if source.in_members:
                    assert isinstance(value, np.ndarray), "numbers"
                    members[f"{name}.npy"] = npy(value)
                else:
                    fields |= as_fields(name, value)
            if looks[name] and looks[name][0] != found[name]:
                raise ImageFault(
                    f"its {name} is {found[name]}, where the first of its shard is {looks[name][0]}"
                )
        return members, fields, found


def _encoded(
    geometry: Geometry, name: str, value: Encoded, image: Encoded, key: str
) -> tuple[str, bytes, Size]:
    """A further image as it is stored. Raises ImageFault."""
    try:
        if geometry.crop == "random" and geometry.size is not None:
            _check_one_size(look(value, geometry.max_pixels), look(image, geometry.max_pixels))
        return geometry.encode(value, key)
    except ImageFault as fault:
        raise ImageFault(f"its {name}: {fault}") from fault


def _check_one_size(further: Header, image: Header) -> None:
    """A random crop cuts both alike only if both have one size. Raises ImageFault."""
    sizes = [f"{one.width}x{one.height}" for one in (further, image)]
    if sizes[0] != sizes[1]:
        raise ImageFault(f"{sizes[0]} for an image of {sizes[1]}; a random crop needs both at one size")

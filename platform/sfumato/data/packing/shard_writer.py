"""Packing one shard: a task that writes a tar and its index, and says what it wrote."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from sfumato.data.format import index
from sfumato.data.format.faults import Fault, ImageFault
from sfumato.data.format.images import bombs_refused
from sfumato.data.format.manifest import ImageInfo, ShardInfo
from sfumato.data.format.tar import TarWriter
from sfumato.data.packing.layout import ShardPlan
from sfumato.data.packing.resizing import Size
from sfumato.data.packing.sources.source import NO_LABEL, Source
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


@dataclass(frozen=True, slots=True)
class ShardTask:
    """Packs the samples of `part`, which are the rows of `plan`, into `folder` (a folder or URI).

    Stops after more than `max_faults` samples that cannot be used; the caller then fails as a whole, so
    that nothing of the shard stays. The name of the file appears when all of it is written.
    """

    part: Source
    plan: ShardPlan
    folder: str
    max_faults: int

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
        told = count = 0
        with draft.open("wb") as file, bombs_refused():
            tar = TarWriter(file)
            for row, key in enumerate(self.part.keys):
                try:
                    sizes.add(self._add(tar, row, key))
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
        built = index.build(target.parent, target.name)
        built.save(target.parent, info)
        return ShardResult(self.plan, info, len(built) - built.captions.null_count, tuple(faults))

    def _add(self, tar: TarWriter, row: int, key: str) -> Size:
        record = self.part.read(row)
        extension, data, size = self.plan.geometry.encode(record.image, key)
        meta = (
            None
            if not record.meta
            else json.dumps(record.meta, ensure_ascii=False, sort_keys=True, default=str)
        )
        tar.add(f"{key}.{extension}", data)
        labels = self.part.labels
        if labels is not None and labels[row] != NO_LABEL:
            tar.add(f"{key}.cls", str(labels[row]).encode())
        if record.caption is not None:
            tar.add(f"{key}.txt", record.caption.encode("utf-8", "replace"))
        if meta is not None:
            tar.add(f"{key}.json", meta.encode("utf-8", "replace"))
        return size

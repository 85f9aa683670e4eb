"""Checks a packed data set to the last pixel: checksums, indexes, keys, labels, and every image decoded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sfumato.data.format import index
from sfumato.data.format.arrays import SamplePlace, read_arrays
from sfumato.data.format.columns import ColumnInfo, SideFile
from sfumato.data.format.faults import Fault, ImageFault
from sfumato.data.format.images import bombs_refused, decoded
from sfumato.data.format.index import ShardIndex
from sfumato.data.format.manifest import Manifest, ShardInfo, difference, file_digest
from sfumato.data.format.samples import grouped
from sfumato.data.format.several import table_of
from sfumato.data.format.tar import scan
from sfumato.data.packing.tasks import OnProgress, Runner, Tally, in_process
from sfumato.data.reading.further import check as check_values
from sfumato.data.reading.further import values_of
from sfumato.data.storage.read import local_copy, size_of
from sfumato.errors import DataError

_TELL = 64


@dataclass(frozen=True, slots=True)
class _Checked:
    faults: list[Fault]
    keys: list[str]


def check(
    folder: str | Path,
    *,
    decode: bool = True,
    run: Runner = in_process,
    progress: OnProgress | None = None,
) -> tuple[Manifest, list[Fault]]:
    """Everything that is wrong with a data set; a fault with an empty key concerns a whole shard.

    Raises DataError only if no manifest can be read.
    """
    manifest = Manifest.load(folder)
    tasks = [_CheckTask(str(folder), manifest, shard, decode) for shard in manifest.shards]
    parts = list(run(tasks, Tally(progress, manifest.samples)))
    faults = [fault for part in parts for fault in part.faults]
    return manifest, faults + _twins(manifest, parts)


def _twins(manifest: Manifest, parts: Sequence[_Checked]) -> list[Fault]:
    first: dict[str, str] = {}
    faults = []
    for shard, part in zip(manifest.shards, parts, strict=True):
        for key in part.keys:
            before = first.get(key)
            if before is None:
                first[key] = shard.name
            else:
                faults.append(Fault(shard.name, key, f"its key has appeared before, in {before}"))
    return faults


@dataclass(frozen=True, slots=True)
class _CheckTask:
    folder: str
    manifest: Manifest
    shard: ShardInfo
    decode: bool

    def __call__(self) -> Iterator[int | _Checked]:
        name = self.shard.name
        try:
            if size_of(self.folder, name) is None:
                raise DataError("missing")
            rows = index.load_shard(self.folder, self.shard)
            with local_copy(self.folder, name) as path:  # fetched once if remote
                faults = self._file(path) + self._places(path, rows) + self._side_files()
                if self.decode:
                    yield from self._images(path, rows, faults)
                    faults += self._columns(path, rows)
        except DataError as error:
            yield self.shard.samples
            yield _Checked([Fault(name, "", str(error).removeprefix(f"{self.folder}: "))], [])
            return
        yield _Checked(faults, rows.keys.to_pylist())

    def _file(self, path: Path) -> list[Fault]:
        size = path.stat().st_size
        if size != self.shard.bytes:
            what = "truncated" if size < self.shard.bytes else "too long"
            return [self._fault(f"{what}: {size:,} bytes where the manifest says {self.shard.bytes:,}")]
        if file_digest(str(path.parent), path.name) != self.shard.sha256:
            return [self._fault("its checksum differs from the manifest's")]
        return []

    def _fault(self, reason: str, key: str = "") -> Fault:
        return Fault(self.shard.name, key, reason)

    def _places(self, path: Path, rows: ShardIndex) -> list[Fault]:
        """Whether each member is at the place in the tar that the index gives."""
        found: dict[tuple[int, int], str] = {}
        with path.open("rb") as file:
            try:
                for key, members in grouped(scan(file, path.stat().st_size, self.shard.name)):
                    found.update({(m.offset, m.size): key for _, m in members if not m.problem})
            except DataError as error:
                return [self._fault(str(error).removeprefix(f"{self.shard.name}: "))]
        keys = rows.keys.to_pylist()
        faults = [
            self._fault("is not where the index says", key)
            for offset, size, key in zip(rows.offsets.tolist(), rows.sizes.tolist(), keys, strict=True)
            if found.get((offset, size)) != key
        ]
        for name, info in self.manifest.columns.items():
            places = rows.extra[name].to_pylist() if info.stored == "members" else ()
            faults += [
                self._fault(f"its {name} is not where the index says", key)
                for place, key in zip(places, keys, strict=False)
                if place is not None and found.get((place["offset"], place["size"])) != key
            ]
        return faults

    def _side_files(self) -> list[Fault]:
        """Whether the files next to the shard match the manifest."""
        faults = []
        for name, info in self.manifest.columns.items():
            if info.beside_shards:
                file = info.files.get(self.shard.name)
                reason = difference(self.folder, file, checksums=True) if file else "not in the manifest"
                if not reason and file and not self._holds_all(file, info):
                    reason = f"{file.bytes:,} bytes are not those of {self.shard.samples:,} samples"
                if reason:
                    faults.append(self._fault(f"the file of its column {name}: {reason}"))
        return faults

    def _holds_all(self, file: SideFile, info: ColumnInfo) -> bool:
        """Whether the file has a value for every sample."""
        if info.stored == "several":
            return table_of(self.folder, file).samples == self.shard.samples
        return file.bytes == self.shard.samples * info.row_bytes

    def _columns(self, path: Path, rows: ShardIndex) -> list[Fault]:
        """Every value of every further column; a sample may lack one."""
        looks = self.manifest.further_images(self.manifest.columns, self.manifest.image_of(self.shard))
        infos = {n: info for n, info in self.manifest.columns.items() if info.stored in ("index", "members")}
        chosen = np.arange(len(rows))
        faults = []
        with path.open("rb") as file, bombs_refused():
            for row, values in enumerate(values_of(rows, chosen, infos, self.shard.name)):
                for name, value in values.items():
                    if value is None:
                        continue
                    try:
                        if name in looks:
                            file.seek(value[0])
                            decoded(file.read(value[1]), looks[name])
                        elif infos[name].stored == "index":
                            check_values({name: value}, {name: infos[name]})
                    except ImageFault as fault:
                        faults.append(self._fault(f"its {name}: {fault}", str(rows.keys[row])))
        return faults + self._arrays(rows, infos)

    def _arrays(self, rows: ShardIndex, infos: Mapping[str, ColumnInfo]) -> list[Fault]:
        faults = []
        keys = rows.keys.to_pylist()
        for name, info in infos.items():
            if info.stored != "members" or info.kind == "image":
                continue
            for row in np.flatnonzero(rows.extra[name].is_valid().to_numpy(zero_copy_only=False)).tolist():
                try:
                    read_arrays(self.folder, [SamplePlace(self.shard, row, keys[row])], {name: info})
                except DataError as error:
                    faults.append(self._fault(str(error).removeprefix(f"{self.folder}: "), keys[row]))
        return faults

    def _images(self, path: Path, rows: ShardIndex, faults: list[Fault]) -> Iterator[int]:
        info, classes, told = self.manifest.image_of(self.shard), len(self.manifest.classes), 0
        with path.open("rb") as file, bombs_refused():
            for row in range(len(rows)):
                try:
                    label = int(rows.labels[row])
                    if classes and not 0 <= label < classes:
                        raise ImageFault("it has no label" if label < 0 else f"label {label} is out of range")
                    file.seek(int(rows.offsets[row]))
                    decoded(bytes(file.read(int(rows.sizes[row]))), info)
                except ImageFault as fault:
                    faults.append(self._fault(str(fault), str(rows.keys[row])))
                if row + 1 - told == _TELL:
                    yield _TELL
                    told += _TELL
        yield len(rows) - told

"""One index a shard: where each sample's image lies, its key and its label.

It makes ranged reads possible and answers questions about labels without touching an image. The format is
an Arrow IPC file beside the shard; its metadata names the shard's checksum, so that an index of other
bytes is noticed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sfumato.data.location import open_file, read_bytes, size_of
from sfumato.data.manifest import Manifest, ShardInfo
from sfumato.data.tar import Member, scan
from sfumato.errors import DataError

IMAGE_EXTENSIONS = ("png", "jpg", "jpeg", "webp", "npy")
NO_LABEL = -1
I64 = NDArray[np.int64]
_SCHEMA = pa.schema(
    [("key", pa.string()), ("offset", pa.int64()), ("size", pa.int64()), ("label", pa.int64())]
)


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """The samples of one shard in the order of the tar. `labels` is -1 where there is none."""

    keys: pa.StringArray
    offsets: I64
    sizes: I64
    labels: I64

    def __len__(self) -> int:
        return len(self.offsets)

    def save(self, folder: str | Path, shard: ShardInfo) -> None:
        columns = [self.keys, *(pa.array(column) for column in (self.offsets, self.sizes, self.labels))]
        schema = _SCHEMA.with_metadata({"sha256": shard.sha256, "version": "1"})
        path = Path(folder) / file_name(shard.name)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
            writer.write_table(pa.table(columns, schema=schema))


def file_name(shard: str) -> str:
    """`NAME-000000.tar` -> `NAME-000000.index.arrow`."""
    return f"{shard.removesuffix('.tar')}.index.arrow"


def build(folder: str | Path, shard: str) -> ShardIndex:
    """Scan a WebDataset shard. Raises DataError for a damaged tar, a sample with no image or with several."""
    where = f"{folder}: {shard}"
    total = size_of(str(folder), shard)
    keys: list[str] = []
    rows: list[tuple[int, int, int]] = []
    with open_file(str(folder), shard) as file:
        for key, members in _samples(scan(file, total or 0, where)):
            images = [name for name in members if name in IMAGE_EXTENSIONS]
            if len(images) != 1:
                held = ", ".join(sorted(members))
                raise DataError(f"{where}: {key}: wanted one image of {IMAGE_EXTENSIONS}, it holds {held}")
            member, cls = members[images[0]], members.get("cls")
            keys.append(key)
            label = NO_LABEL
            if cls is not None:
                file.seek(cls.offset)
                label = _label(file.read(cls.size), f"{where}: {key}")
            rows.append((member.offset, member.size, label))
    table = np.array(rows, np.int64).reshape(-1, 3)
    return ShardIndex(pa.array(keys, pa.string()), table[:, 0], table[:, 1], table[:, 2])


def _samples(members: Iterator[Member]) -> Iterator[tuple[str, dict[str, Member]]]:
    """Consecutive members with one key: WebDataset's rule, key and extension part at the first dot."""
    key, sample = None, dict[str, Member]()
    for member in members:
        folder, slash, base = member.name.rpartition("/")
        stem, _, extension = base.partition(".")
        if folder + slash + stem != key and sample:
            assert key is not None
            yield key, sample
            sample = {}
        key = folder + slash + stem
        sample[extension.lower()] = member
    if key is not None:
        yield key, sample


def _label(text: bytes, where: str) -> int:
    if not text.strip().isdigit():
        raise DataError(f"{where}: its cls is {text[:20]!r}; wanted a class number")
    return int(text)


@lru_cache(maxsize=64)
def load_shard(folder: str, shard: ShardInfo) -> ShardIndex:
    """The index of one shard; kept in memory, as a process reads many blocks of a shard."""
    name = file_name(shard.name)
    hint = "pack the data set again"
    try:
        with pa.ipc.open_file(pa.BufferReader(read_bytes(folder, name))) as reader:
            table = reader.read_all()
        metadata = table.schema.metadata or {}
        if metadata.get(b"version") != b"1" or table.schema.names != _SCHEMA.names:
            raise DataError(f"{folder}: {name}: written by another version; {hint}")
        columns = [table.column(name).to_numpy() for name in ("offset", "size", "label")]
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{folder}: {name}: damaged; {hint}") from error
    if metadata.get(b"sha256") != shard.sha256.encode() or len(table) != shard.samples:
        raise DataError(f"{folder}: {name}: belongs to another {shard.name}; {hint}")
    return ShardIndex(table.column("key").combine_chunks(), *columns)


def load(folder: str | Path, manifest: Manifest) -> list[ShardIndex]:
    """The index of every shard, in the manifest's order."""
    return [load_shard(str(folder), shard) for shard in manifest.shards]


def class_counts(folder: str | Path, manifest: Manifest) -> I64:
    """How many samples each class has, int64 [classes]; no image is read."""
    counts = np.zeros(len(manifest.classes), np.int64)
    for index in load(folder, manifest):
        known = index.labels[(index.labels >= 0) & (index.labels < len(counts))]
        counts += np.bincount(known, minlength=len(counts))
    return counts

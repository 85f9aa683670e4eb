"""One index per shard: where each sample's image is, its key, label, caption and further columns.

It makes ranged reads possible and answers questions about labels without touching an image. The format is
an Arrow IPC file next to the shard; its metadata names the shard's checksum, so that an index of other
bytes is detected.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sfumato.data.format.column_sources import ColumnSource, Sources
from sfumato.data.format.faults import Fault
from sfumato.data.format.manifest import Manifest, ShardInfo
from sfumato.data.format.samples import Fields, Row, SampleReader
from sfumato.data.storage.read import open_file, read_bytes, size_of
from sfumato.data.storage.write import write_bytes
from sfumato.errors import DataError

NO_LABEL = -1
I64 = NDArray[np.int64]
_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("label", pa.int64()),
        ("caption", pa.string()),
    ]
)
_VERSION, _VERSION_WITH_COLUMNS = b"2", b"3"
_DEFAULT = Fields()
_NONE: Sources = MappingProxyType({})
_PLACE = pa.struct([("offset", pa.int64()), ("size", pa.int64())])
WEIGHTS = ".weights"


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """The samples of one shard in the order of the tar.

    A missing label is -1, a missing caption null. The index need not list every member of the tar: samples
    that could not be used when an existing data set was indexed are left out.

    `extra` has the further columns, null if a sample has no value: a struct of `offset` and `size` for
    members of the tar, otherwise the values, with the weights of several texts in `NAME.weights`.
    """

    keys: pa.StringArray
    offsets: I64
    sizes: I64
    labels: I64
    captions: pa.StringArray
    extra: Mapping[str, pa.Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.offsets)

    def save(self, folder: str | Path, shard: ShardInfo) -> None:
        """Write it next to the shard."""
        numbers = (pa.array(column) for column in (self.offsets, self.sizes, self.labels))
        columns = [self.keys, *numbers, self.captions, *self.extra.values()]
        further = [pa.field(name, column.type) for name, column in self.extra.items()]
        version = _VERSION_WITH_COLUMNS if further else _VERSION
        schema = pa.schema([*_SCHEMA, *further], {"sha256": shard.sha256, "version": version})
        out = pa.BufferOutputStream()
        with pa.ipc.new_file(out, schema) as writer:
            writer.write_table(pa.table(columns, schema=schema))
        write_bytes(str(folder), file_name(shard.name), out.getvalue())


def file_name(shard: str) -> str:
    """`NAME-000000.tar` -> `NAME-000000.index.arrow`."""
    return f"{shard.removesuffix('.tar')}.index.arrow"


def build(folder: str | Path, shard: str, fields: Fields = _DEFAULT) -> ShardIndex:
    """Scan a WebDataset shard whose labels are numbers. Raises DataError at the first fault."""
    where = f"{folder}: {shard}"
    total = size_of(str(folder), shard)
    rows: list[Row] = []
    with open_file(str(folder), shard) as file:
        for row in SampleReader(fields).rows(file, total or 0, where):
            if isinstance(row, Fault):
                raise DataError(str(row))
            if isinstance(row.label, str):
                raise DataError(f"{where}: {row.key}: its label is {row.label!r}; wanted a class number")
            rows.append(row)
    labels = [NO_LABEL if row.label is None else int(row.label) for row in rows]
    return of_rows(rows, labels, fields.columns)


def of_rows(rows: Sequence[Row], labels: Sequence[int], columns: Sources = _NONE) -> ShardIndex:
    """The index of these samples, whose labels are now class numbers, with these further columns."""
    extra: dict[str, pa.Array] = {}
    for name, source in columns.items():
        extra |= _further(name, source, [row.extra.get(name) for row in rows])
    return ShardIndex(
        pa.array([row.key for row in rows], pa.string()),
        np.array([row.image.offset for row in rows], np.int64),
        np.array([row.image.size for row in rows], np.int64),
        np.array(labels, np.int64),
        pa.array([row.caption for row in rows], pa.string()),
        extra,
    )


def _further(name: str, source: ColumnSource, values: Sequence[Any]) -> dict[str, pa.Array]:
    """A further column as the index holds it."""
    if source.in_members:
        places = [None if value is None else {"offset": value.offset, "size": value.size} for value in values]
        return {name: pa.array(places, _PLACE)}
    if source.kind == "text":
        texts = pa.array([value and value.texts for value in values], pa.list_(pa.string()))
        if not any(value is not None and value.weights for value in values):
            return {name: texts}
        weights = pa.array([value and value.weights for value in values], pa.list_(pa.float64()))
        return {name: texts, name + WEIGHTS: weights}
    if source.kind == "tags":
        return {name: pa.array(values, pa.list_(pa.string()))}
    if source.kind == "label":
        return {name: pa.array(values, pa.int64())}
    flat = [None if value is None else value.reshape(-1) for value in values]
    return {name: pa.array(flat, pa.list_(pa.float32()))}


def column_digest(folder: str | Path, shards: Sequence[ShardInfo], name: str) -> str:
    """sha256 of a further column's content in the indexes of some shards."""
    digest = hashlib.sha256()
    for shard in shards:
        extra = load_shard(str(folder), shard).extra
        held = {key: column for key, column in extra.items() if key in (name, name + WEIGHTS)}
        out = pa.BufferOutputStream()
        table = pa.table(held)
        with pa.ipc.new_stream(out, table.schema) as writer:
            writer.write_table(table)
        digest.update(out.getvalue())
    return digest.hexdigest()


@lru_cache(maxsize=64)
def load_shard(folder: str, shard: ShardInfo) -> ShardIndex:
    """The index of one shard; cached, since a process reads many blocks of a shard."""
    name = file_name(shard.name)
    hint = "pack or index the data set again"
    try:
        with pa.ipc.open_file(pa.BufferReader(read_bytes(folder, name))) as reader:
            table = reader.read_all()
        metadata = table.schema.metadata or {}
        known = metadata.get(b"version") in (_VERSION, _VERSION_WITH_COLUMNS)
        if not known or table.schema.names[: len(_SCHEMA)] != _SCHEMA.names:
            raise DataError(f"{folder}: {name}: written by another version; {hint}")
        offsets, sizes, labels = (table.column(name).to_numpy() for name in ("offset", "size", "label"))
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{folder}: {name}: damaged; {hint}") from error
    if metadata.get(b"sha256") != shard.sha256.encode() or len(table) != shard.samples:
        raise DataError(f"{folder}: {name}: belongs to another {shard.name}; {hint}")
    keys, captions = (_one_array(table.column(name)) for name in ("key", "caption"))
    extra = {name: _one_array(table.column(name)) for name in table.schema.names[len(_SCHEMA) :]}
    return ShardIndex(keys, offsets, sizes, labels, captions, extra)


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


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

"""Columns of arrays: reads those of some samples by range, and writes files of them next to shards.

Members are npy files, read without `np.load`, which would trust whatever a header claims. A side
file has the rows of one column one after another, without a header, in the order of the shard's index.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sfumato.data.format.columns import ColumnInfo, numpy_type
from sfumato.data.format.index import load_shard
from sfumato.data.format.manifest import ShardInfo
from sfumato.data.format.ranges import Range, read_ranges
from sfumato.data.format.several import table_of, whole
from sfumato.data.storage.read import read_bytes
from sfumato.errors import DataError

Array = NDArray[Any]
NOTHING: Mapping[str, int] = MappingProxyType({})
AGAIN = "pack or precompute the data set again"


class SamplePlace(NamedTuple):
    """Where a sample is: its shard, its row in the shard's index, and its key."""

    shard: ShardInfo
    row: int
    key: str
    drawn: Mapping[str, int] = NOTHING
    """By column of texts, the number of the one that was drawn."""


class _Piece(NamedTuple):
    """The bytes of one value: of which column, of which of the wanted samples, and where."""

    name: str
    wanted: int
    range: Range


def npy(array: Array) -> bytes:
    """The array as an npy file; the same array gives the same bytes."""
    out = io.BytesIO()
    np.lib.format.write_array(out, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return out.getvalue()


def read_arrays(
    folder: str, places: Sequence[SamplePlace], columns: Mapping[str, ColumnInfo]
) -> dict[str, Array]:
    """The values of samples in columns that are not stored in the index, by name: [n, *shape] each.

    Raises DataError, naming the sample, if one is missing or does not match the manifest.
    """
    found = {
        name: np.empty((len(places), *info.shape), numpy_type(info.dtype)) for name, info in columns.items()
    }
    rows_of: defaultdict[str, list[int]] = defaultdict(list)
    for number, place in enumerate(places):
        rows_of[place.shard.name].append(number)
    for numbers in rows_of.values():
        for file, pieces in _pieces(folder, places, numbers, columns).items():
            contents = read_ranges(folder, file, [piece.range for piece in pieces])
            for piece, content in zip(pieces, contents, strict=True):
                where = f"{folder}: {file}: {places[piece.wanted].key}: {piece.name}"
                found[piece.name][piece.wanted] = _value(content, columns[piece.name], where)
    return found


def _pieces(
    folder: str, places: Sequence[SamplePlace], numbers: Sequence[int], columns: Mapping[str, ColumnInfo]
) -> dict[str, list[_Piece]]:
    """The pieces to read for these samples, by file; all samples are of one shard."""
    shard = places[numbers[0]].shard
    pieces: defaultdict[str, list[_Piece]] = defaultdict(list)
    for name, info in columns.items():
        file = info.files[shard.name].name if info.beside_shards else shard.name
        for number, found in zip(
            numbers, _ranges(folder, shard, [places[n] for n in numbers], name, info), strict=True
        ):
            pieces[file].append(_Piece(name, number, found))
    return pieces


def _ranges(
    folder: str, shard: ShardInfo, places: Sequence[SamplePlace], name: str, info: ColumnInfo
) -> Iterator[Range]:
    """The place of the column's value for each sample."""
    if info.stored == "side":
        yield from ((place.row * info.row_bytes, info.row_bytes) for place in places)
        return
    if info.texts is not None:
        table = table_of(folder, info.files[shard.name])
        yield from (table.range(place.row, place.drawn.get(info.texts, 0)) for place in places)
        return
    if info.stored == "members":
        column = load_shard(folder, shard).extra[name]
        for place, found in zip(
            places, column.take([place.row for place in places]).to_pylist(), strict=True
        ):
            if found is None:
                raise DataError(f"{folder}: {shard.name}: {place.key}: it has no {name}; {AGAIN}")
            yield found["offset"], found["size"]
        return
    known = _older_places(folder, shard.name, name)
    size = len(npy(np.zeros(info.shape, info.dtype)))
    for place in places:
        if place.key not in known:
            raise DataError(f"{folder}: {shard.name}: {place.key}: it has no {name}; precompute it again")
        yield known[place.key], size


@lru_cache(maxsize=64)
def _older_places(folder: str, shard: str, name: str) -> Mapping[str, int]:
    """Where each sample's array starts, by its key, from `NAME-000000.arrays.arrow`. Raises DataError."""
    file = f"{shard.removesuffix('.tar')}.arrays.arrow"
    try:
        with pa.ipc.open_file(pa.BufferReader(read_bytes(folder, file))) as reader:
            table = reader.read_all()
        keys, offsets = table.column("key").to_pylist(), table.column(name).to_pylist()
    except (pa.ArrowInvalid, KeyError, OSError) as error:
        raise DataError(f"{folder}: {file}: damaged; run `sfumato precompute` again") from error
    return dict(zip(keys, offsets, strict=True))


def _value(content: bytes, info: ColumnInfo, where: str) -> Array:
    if info.stored == "several":
        return whole(content, info, where)
    if info.stored == "side":
        if len(content) != info.row_bytes:
            raise DataError(f"{where}: the file ends before it; {AGAIN}")
        return np.frombuffer(content, numpy_type(info.dtype)).reshape(info.shape)
    try:
        shape, dtype, start = npy_look(content)
        if shape != info.shape or dtype != info.dtype:
            raise ValueError(f"{dtype} of shape {shape}, wanted {info.dtype} of {info.shape}")
        values = np.frombuffer(content, dtype, int(np.prod(info.shape)), start)
    except ValueError as error:
        raise DataError(f"{where}: {error}; {AGAIN}") from error
    return values.reshape(info.shape)


def npy_look(content: bytes) -> tuple[tuple[int, ...], str, int]:
    """Shape, type and first byte of the numbers of an npy file. Raises ValueError for a file that cannot be
    used: objects, structures, big-endian numbers, Fortran order."""
    stream = io.BytesIO(content)
    if np.lib.format.read_magic(stream) == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    else:
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    if fortran and len(shape) > 1:
        raise ValueError("an npy file in Fortran order; save it in C order")
    if dtype.hasobject or dtype.kind not in "fiub" or dtype != dtype.newbyteorder("="):
        raise ValueError(f"an npy file of {dtype}; wanted plain numbers")
    return shape, dtype.name, stream.tell()

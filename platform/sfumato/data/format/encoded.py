"""Arrays that lie in shards beside the images: where they are, and reading those of some samples.

A file `NAME.arrays.arrow` beside each shard says at which byte each sample's arrays start, so that they are
read by range like images. They are read without `np.load`, which would believe whatever a header claims.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sfumato.data.format.encoder_info import ArrayInfo
from sfumato.data.storage.read import open_file, read_bytes
from sfumato.errors import DataError

_MAX_GAP = 1 << 16
Array = NDArray[Any]
Offsets = Mapping[str, tuple[int, ...]]


def npy(array: Array) -> bytes:
    """The array as an npy file; the same array gives the same bytes."""
    out = io.BytesIO()
    np.lib.format.write_array(out, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return out.getvalue()


def npy_bytes(info: ArrayInfo) -> int:
    """How long the npy file of an array is."""
    return len(npy(np.zeros(info.shape, info.dtype)))


def save_places(
    folder: Path, shard: str, sha256: str, keys: Sequence[str], offsets: Mapping[str, Sequence[int]]
) -> None:
    """Write where the arrays of a shard's samples start; `sha256` is the shard's."""
    columns = {"key": pa.array(keys, pa.string())} | {
        name: pa.array(list(places), pa.int64()) for name, places in offsets.items()
    }
    table = pa.table(columns).replace_schema_metadata({"sha256": sha256})
    with pa.OSFile(str(folder / file_name(shard)), "wb") as file, pa.ipc.new_file(file, table.schema) as out:
        out.write_table(table)


def file_name(shard: str) -> str:
    """`NAME-000000.tar` -> `NAME-000000.arrays.arrow`."""
    return f"{shard.removesuffix('.tar')}.arrays.arrow"


@lru_cache(maxsize=64)
def places(folder: str, shard: str, names: tuple[str, ...]) -> Offsets:
    """Where each sample's arrays start, by its key. Raises DataError."""
    name = file_name(shard)
    try:
        with pa.ipc.open_file(pa.BufferReader(read_bytes(folder, name))) as reader:
            table = reader.read_all()
        columns = [table.column(column).to_pylist() for column in ("key", *names)]
    except (pa.ArrowInvalid, KeyError, OSError) as error:
        raise DataError(f"{folder}: {name}: damaged; run `sfumato precompute` again") from error
    return {str(key): tuple(found) for key, *found in zip(*columns, strict=True)}


def read_arrays(
    folder: str, samples: Sequence[tuple[str, str]], arrays: Sequence[ArrayInfo]
) -> dict[str, Array]:
    """The arrays of samples (shard, key), by name: [n, *shape] each.

    Raises DataError, naming the sample, where one is missing or not as the manifest says.
    """
    found = {info.name: np.empty((len(samples), *info.shape), info.dtype) for info in arrays}
    rows_of: defaultdict[str, list[int]] = defaultdict(list)
    for row, (shard, _) in enumerate(samples):
        rows_of[shard].append(row)
    names, sizes = tuple(info.name for info in arrays), [npy_bytes(info) for info in arrays]
    for shard, rows in rows_of.items():
        known = places(folder, shard, names)
        wanted = []
        for row in rows:
            key = samples[row][1]
            if key not in known:
                raise DataError(f"{folder}: {shard}: {key}: has no precomputed arrays; precompute it again")
            for info, start, size in zip(arrays, known[key], sizes, strict=True):
                wanted.append((start, size, info, row))
        for info, row, content in _contents(folder, shard, wanted):
            found[info.name][row] = _array(content, info, f"{folder}: {shard}: {samples[row][1]}")
    return found


def _contents(
    folder: str, shard: str, wanted: list[tuple[int, int, ArrayInfo, int]]
) -> list[tuple[ArrayInfo, int, bytes]]:
    """The bytes of each wanted piece, in as few reads as their gaps allow."""
    wanted.sort(key=lambda piece: piece[0])
    found = []
    with open_file(folder, shard) as file:
        first = 0
        while first < len(wanted):
            last = first
            while last + 1 < len(wanted) and _near(wanted[last], wanted[last + 1]):
                last += 1
            start = wanted[first][0]
            file.seek(start)
            buffer = file.read(wanted[last][0] + wanted[last][1] - start)
            for at, size, info, row in wanted[first : last + 1]:
                found.append((info, row, bytes(buffer[at - start : at - start + size])))
            first = last + 1
    return found


def _near(piece: tuple[int, int, ArrayInfo, int], other: tuple[int, int, ArrayInfo, int]) -> bool:
    return other[0] - piece[0] - piece[1] <= _MAX_GAP


def _array(content: bytes, info: ArrayInfo, where: str) -> Array:
    stream = io.BytesIO(content)
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("another version of npy")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        if shape != info.shape or dtype != np.dtype(info.dtype) or fortran:
            raise ValueError(f"{dtype} of shape {shape}, wanted {info.dtype} of {info.shape}")
        values = np.frombuffer(content, dtype, int(np.prod(info.shape)), stream.tell())
    except ValueError as error:
        raise DataError(f"{where}.{info.name}.npy: {error}; run `sfumato precompute` again") from error
    return values.reshape(info.shape)

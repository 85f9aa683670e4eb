"""What a reader delivers: some rows as columns, and what was wrong with some of them.

Between a Ray read task and its consumer a chunk is one row of an Arrow table, with its pixels as one binary
value. Ray then does not cut, join or convert them, images of different sizes may follow one another, and they
are not copied on the way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sfumato.data.format.faults import Fault

Columns = dict[str, NDArray[Any]]
"""`image` uint8 [n, H, W, C]; `label` int64 [n] if the set has classes; `text` str as objects [n];
further columns by name: images as `image`, texts and lists of words as objects [n], numbers [n, ...]."""

_SCHEMA = pa.schema(
    [
        ("place", pa.int64()),
        ("shape", pa.list_(pa.int64())),
        ("image", pa.large_binary()),
        ("label", pa.large_binary()),
        ("rest", pa.string()),
        ("arrays", pa.list_(pa.large_binary())),
    ]
)


_NAMED = ("image", "label")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows of one block, in order."""

    columns: Columns
    faults: tuple[Fault, ...] = ()
    """The requested samples that could not be used; others are in their rows."""
    error: str = ""
    """Why the block could not be read at all; the chunk then has no columns."""

    @property
    def rows(self) -> int:
        return len(self.columns["image"])


def to_table(chunk: Chunk, place: int) -> pa.Table:
    """A table of one row; `place` identifies the block of a reading that the chunk belongs to."""
    image, label = (chunk.columns.get(name) for name in _NAMED)
    others = {name: column for name, column in chunk.columns.items() if name not in _NAMED}
    arrays = {name: column for name, column in others.items() if not column.dtype.hasobject}
    rest = {
        "arrays": {name: [array.dtype.str, array.shape] for name, array in arrays.items()},
        "faults": [[fault.where, fault.key, fault.reason] for fault in chunk.faults],
        "error": chunk.error,
        "objects": {name: column.tolist() for name, column in others.items() if name not in arrays},
    }
    columns = [
        pa.array([place], pa.int64()),
        pa.array([() if image is None else image.shape], _SCHEMA.types[1]),
        _binary(image),
        _binary(label),
        pa.array([json.dumps(rest)], pa.string()),
        _binaries(list(arrays.values())),
    ]
    return pa.table(columns, schema=_SCHEMA)


def from_table(table: pa.Table) -> Iterator[tuple[int, Chunk]]:
    """The places and chunks of a table's rows. Their arrays are read-only views of the table's memory."""
    for part in table.to_batches():
        for row in range(part.num_rows):
            yield part.column(0)[row].as_py(), _chunk(part, row)


def _chunk(part: pa.RecordBatch, row: int) -> Chunk:
    shape, image, label, rest, arrays = (part.column(number)[row] for number in range(1, 6))
    told = json.loads(rest.as_py())
    columns: Columns = {}
    if image.is_valid:
        columns["image"] = np.frombuffer(image.as_buffer(), np.uint8).reshape(shape.as_py())
    if label.is_valid:
        columns["label"] = np.frombuffer(label.as_buffer(), np.int64)
    columns |= {name: objects(values) for name, values in told["objects"].items()}
    for (name, (dtype, size)), values in zip(told["arrays"].items(), arrays.values, strict=True):
        columns[name] = np.frombuffer(values.as_buffer(), dtype).reshape(size)
    return Chunk(columns, tuple(Fault(*fault) for fault in told["faults"]), told["error"])


def objects(values: Sequence[Any]) -> NDArray[Any]:
    """An array [n] of any objects, lists included."""
    found = np.empty(len(values), dtype=object)
    for row, value in enumerate(values):
        found[row] = value
    return found


def _binaries(columns: Sequence[NDArray[Any]]) -> pa.Array:
    """The bytes of several arrays as one list, copied once."""
    data = [np.ascontiguousarray(column).reshape(-1).view(np.uint8) for column in columns]
    ends = np.cumsum([0, *(part.nbytes for part in data)], dtype=np.int64)
    joined = pa.py_buffer(np.concatenate([*data, np.empty(0, np.uint8)]))
    values = pa.Array.from_buffers(pa.large_binary(), len(data), [None, pa.py_buffer(ends), joined])
    return pa.ListArray.from_arrays(pa.array([0, len(data)], pa.int32()), values)


def _binary(column: NDArray[Any] | None) -> pa.Array:
    """The bytes of an array as one value, not copied."""
    if column is None:
        return pa.nulls(1, pa.large_binary())
    data = np.ascontiguousarray(column).reshape(-1).view(np.uint8)
    ends = pa.py_buffer(np.array([0, data.nbytes], np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, pa.py_buffer(data)])

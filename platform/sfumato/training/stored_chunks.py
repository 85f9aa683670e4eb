"""Reads one tensor, written by `torch.save`, from a larger file: whole, or only the requested rows.

`torch.save` writes an uncompressed zip archive: a pickle that describes the tensor's layout in its storage,
and the storage itself. If only some rows of a large chunk are requested, they are read from their location in
the storage; the unpickler that reads the pickle builds nothing and refuses everything but a tensor.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

_WORTH_BYTES = 256 << 10
"""Smaller chunks are read whole: locating rows takes a handful of requests."""
_LOCAL_HEADER = struct.Struct("<26xHH")


def read_rows(
    file: BinaryIO, offset: int, length: int, shape: Sequence[int], dtype: torch.dtype, span: tuple[int, int]
) -> Tensor:
    """Rows `span[0]` to `span[1]` (exclusive) of the tensor of that shape in `length` bytes at `offset`.

    Raises ValueError if there is no such tensor.
    """
    start, stop = span
    if length >= _WORTH_BYTES and stop - start < shape[0]:
        rows = _rows_in_place(file, offset, length, shape, dtype, span)
        if rows is not None:
            return rows
    file.seek(offset)
    whole = torch.load(io.BytesIO(file.read(length)), map_location="cpu", weights_only=True)
    if not isinstance(whole, Tensor) or whole.numel() != math.prod(shape) or whole.dtype != dtype:
        raise ValueError(f"no tensor of shape {list(shape)} at byte {offset:,}")
    return whole.reshape(tuple(shape))[start:stop]


def _rows_in_place(
    file: BinaryIO, offset: int, length: int, shape: Sequence[int], dtype: torch.dtype, span: tuple[int, int]
) -> Tensor | None:
    """Only these rows, or None if they are not contiguous."""
    with zipfile.ZipFile(cast(Any, _Window(file, offset, length))) as archive:
        names = {name.split("/", 1)[-1]: name for name in archive.namelist()}
        if "data.pkl" not in names or "data/0" not in names:
            raise ValueError(f"no tensor at byte {offset:,}")
        storage = archive.getinfo(names["data/0"])
        layout = _LayoutUnpickler(io.BytesIO(archive.read(names["data.pkl"]))).load()
    dense = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    if layout != (0, tuple(shape), dense) or storage.compress_type != zipfile.ZIP_STORED:
        return None
    file.seek(offset + storage.header_offset)
    name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    begin = offset + storage.header_offset + _LOCAL_HEADER.size + name + extra
    row = math.prod(shape[1:]) * dtype.itemsize
    file.seek(begin + span[0] * row)
    content = bytearray(file.read((span[1] - span[0]) * row))
    if len(content) != (span[1] - span[0]) * row:
        raise ValueError(f"the file ends within the tensor at byte {offset:,}")
    return torch.frombuffer(content, dtype=dtype).reshape((span[1] - span[0], *shape[1:]))


class _LayoutUnpickler(pickle.Unpickler):
    """Reads only (storage offset, shape, strides) of a pickled tensor."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *rest: (offset, tuple(size), tuple(stride))
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name.endswith("Storage"):
            return name
        raise pickle.UnpicklingError(f"{module}.{name} is not part of a tensor: refused")

    def persistent_load(self, pid: Any) -> Any:
        return pid


class _Window(io.RawIOBase):
    """`length` bytes of a file, seen as a separate file."""

    def __init__(self, file: BinaryIO, offset: int, length: int) -> None:
        self._file, self._offset, self._length, self._at = file, offset, length, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, to: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        if base + to < 0:
            raise OSError("before the beginning")
        self._at = base + to
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._length - self._at)
        self._file.seek(self._offset + self._at)
        content = self._file.read(left if size < 0 else min(size, left))
        self._at += len(content)
        return content

"""Reusable memory for pixels: fresh pages cost more than the copy that fills them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SMALL = 1 << 16  # bytes; below this, the allocator reuses memory


class Slabs:
    """Copies arrays into slabs; a slab is reused once no view of its copy remains.

    As many slabs stay as copies were alive at once. Safe for any number of threads.
    """

    def __init__(self) -> None:
        self._slabs: list[NDArray[np.uint8]] = []
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._slabs)

    def copy(self, array: NDArray[Any]) -> NDArray[Any]:
        """A contiguous copy, of the same shape and dtype."""
        if array.nbytes < _SMALL or array.dtype.hasobject:
            return np.array(array)
        with self._lock:
            room = self._unused(array.nbytes)[: array.nbytes]
        copied = room.view(array.dtype).reshape(array.shape)
        copied[...] = array
        return copied

    def _unused(self, size: int) -> NDArray[np.uint8]:
        for slab, references in _referenced(self._slabs):
            if slab.nbytes >= size and references == _UNUSED:
                return slab
        self._slabs.append(np.empty(size, np.uint8))
        return self._slabs[-1]


def _referenced(slabs: Iterable[NDArray[np.uint8]]) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """Each slab and its reference count. A view refers to the slab, however it was created."""
    for slab in slabs:
        yield slab, sys.getrefcount(slab)


_UNUSED = next(references for _, references in _referenced([np.empty(1, np.uint8)]))
"""The count of a slab without views; which references count depends on the version of Python."""

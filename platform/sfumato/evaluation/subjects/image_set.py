"""Images that are read in parts, each of them once while they are remembered.

Several consumers look at the same pixels in one evaluation: a classifier that is trained on them, extractors,
metrics. A set that fits in `MOST_REMEMBERED` bytes is therefore decoded once and kept until they are done. A
copy that travels to another process starts without memory and reads what it is asked for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from sfumato.core.batch import DataSpec
from sfumato.evaluation.statistics import Int64Array, UInt8Array

ImageBlock = tuple[UInt8Array, Int64Array | None]
"""Images uint8 [n, H, W, C], and their labels int64 [n] if the data has classes."""

ROWS = 512
MOST_REMEMBERED = 512 << 20


class ImageSet(ABC):
    """A fixed, ordered set of images. A subclass says what they are and how some of them are read."""

    digest: str
    spec: DataSpec
    size: int
    _memory: _Memory | None = None

    @abstractmethod
    def _read(self, first: int, stop: int) -> ImageBlock:
        """Images `first` to `stop` - 1, decoded."""

    def parts(self, rows: int) -> Iterator[range]:
        """The positions of all images in order, up to `rows` at a time."""
        yield from (range(first, min(first + rows, self.size)) for first in range(0, self.size, rows))

    def read(self, first: int, stop: int) -> ImageBlock:
        """Images `first` to `stop` - 1; fewer if some cannot be used and the set leaves them out."""
        memory, stop = self._memory, min(stop, self.size)
        found = None if memory is None else self._recalled(memory, first, stop)
        return self._read(first, stop) if found is None else found

    def blocks(self) -> Iterator[ImageBlock]:
        """All images in order, up to 512 at a time."""
        for part in self.parts(ROWS):
            yield self.read(part.start, part.stop)

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """No image is decoded twice while the block runs, if all of them fit in memory."""
        outer = self._memory
        if outer is None and self.size * int(np.prod(self.spec.shape)) <= MOST_REMEMBERED:
            self._memory = _Memory(list(self.parts(ROWS)))
        try:
            yield
        finally:
            self._memory = outer

    def __getstate__(self) -> dict[str, Any]:
        """Without the memory."""
        return {name: value for name, value in self.__dict__.items() if name != "_memory"}

    def _recalled(self, memory: _Memory, first: int, stop: int) -> ImageBlock | None:
        """The images from memory, which new ones join; None if their positions are unknown."""
        slices: list[ImageBlock] = []
        for part in memory.overlapping(first, stop):
            if part.start not in memory.blocks:
                memory.blocks[part.start] = self._read(part.start, part.stop)
            images, label_N = memory.blocks[part.start]
            if (part.start, part.stop) == (first, stop):
                return images, label_N
            if len(images) < len(part):
                return None  # some were left out
            rows = slice(max(first - part.start, 0), stop - part.start)
            slices.append((images[rows], None if label_N is None else label_N[rows]))
        return joined(slices) if slices else None


class _Memory:
    """Decoded parts of a set, by the position of their first image."""

    def __init__(self, parts: Sequence[range]) -> None:
        self._parts = parts
        self._starts = [part.start for part in parts]
        self.blocks: dict[int, ImageBlock] = {}

    def overlapping(self, first: int, stop: int) -> Iterator[range]:
        """The parts that hold images `first` to `stop` - 1."""
        for part in self._parts[max(bisect_right(self._starts, first) - 1, 0) :]:
            if part.start >= stop:
                return
            yield part


def joined(blocks: Sequence[ImageBlock]) -> ImageBlock:
    """Several blocks as one."""
    if len(blocks) == 1:
        return blocks[0]
    labels = [label_N for _, label_N in blocks if label_N is not None]
    return np.concatenate([images for images, _ in blocks]), np.concatenate(labels) if labels else None

"""The order of the data: a pure function of seed, shard sizes, streams and window. No Ray, no files.

Epoch e: (1) permute the shards, lay their samples end to end on a circle and start at a drawn place, which
gives virtual positions 0 .. N-1; (2) deal them into P contiguous streams of N // P, so that N mod P samples
sit the epoch out; (3) cut each stream into blocks of `window` samples and permute inside each block. The
drawn start makes the streams, their blocks and the samples left out differ between epochs, even with a
single shard.

Windows mix only what lies near one another: if the shards are sorted by class, a batch has few classes. With
`chunk`, step (1) permutes runs of at most so many samples of all shards instead of whole shards.

A stream's epochs follow each other without end, so any place in it is one number, its *position*. All
streams have the same length and advance together.

Every draw uses only the raw output of numpy's PCG64 seeded by an integer, which numpy promises never to
change (NEP 19), and not `Generator` methods, which it may change.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from sfumato.core.seeds import derive
from sfumato.errors import ConfigError


def permutation(count: int, seed: int) -> NDArray[np.int64]:
    """A permutation of 0 .. count-1: the ranks of 64-bit draws, ties (never, in practice) by place."""
    draws = np.random.PCG64(seed).random_raw(count)
    return np.argsort(draws, kind="stable").astype(np.int64)


@dataclass(frozen=True, slots=True)
class Range:
    """Samples `first .. first + count - 1` of a shard."""

    shard: int
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Block:
    """One window of one pool in one stream: what to read, and in which order to deliver it.

    Row j of the block is sample `permutation()[j]` of the concatenated ranges. The first `skip` rows were
    consumed before (resume inside a block).
    """

    epoch: int
    stream: int
    index: int
    ranges: tuple[Range, ...]
    seed: int
    skip: int = 0
    pool: int = 0

    @property
    def named(self) -> str:
        """For messages."""
        return f"block {self.index} of stream {self.stream} in epoch {self.epoch} of pool {self.pool}"

    @property
    def samples(self) -> int:
        return sum(part.count for part in self.ranges)

    @property
    def rows(self) -> int:
        """How many rows it delivers."""
        return self.samples - self.skip

    def permutation(self) -> NDArray[np.int64]:
        return permutation(self.samples, self.seed)


class Order:
    """Which sample comes when, for one seed and pool. Raises ConfigError for sizes that cannot be dealt."""

    def __init__(
        self,
        seed: int,
        shard_samples: Sequence[int],
        streams: int,
        window: int,
        pool: int = 0,
        chunk: int | None = None,
    ) -> None:
        self.total = sum(shard_samples)
        if not 1 <= streams <= self.total:
            raise ConfigError(
                f"data.streams is {streams}, the data set has {self.total:,} samples: "
                f"use 1 to {self.total:,} streams"
            )
        if window < 1:
            raise ConfigError(f"data.shuffle_window is {window}; it must be at least 1")
        self.seed, self.streams, self.window, self.pool = seed, streams, window, pool
        self.shard_samples, self.chunk = tuple(shard_samples), chunk
        self._shards, self._stops, self._counts = _runs(self.shard_samples, chunk)
        self.stream_length = self.total // streams
        self.blocks_per_epoch = -(-self.stream_length // window)
        self._layout = lru_cache(maxsize=4)(self._make_layout)

    def __reduce__(self) -> tuple[type[Order], tuple[object, ...]]:
        given = (self.seed, self.shard_samples, self.streams, self.window, self.pool, self.chunk)
        return (Order, given)

    def blocks(self, stream: int, position: int = 0) -> Iterator[Block]:
        """The endless blocks of a stream from a position on; the first may begin in the middle."""
        epoch, within = divmod(position, self.stream_length)
        index, skip = divmod(within, self.window)
        while True:
            for number in range(index, self.blocks_per_epoch):
                yield replace(self._block(epoch, stream, number), skip=skip)
                skip = 0
            epoch, index = epoch + 1, 0

    def sample_at(self, stream: int, position: int) -> tuple[int, int, int]:
        """(epoch, shard, index in the shard) of the sample at a position of a stream."""
        block = next(islice(self.blocks(stream, position), 1))
        place = int(block.permutation()[block.skip])
        for part in block.ranges:
            if place < part.count:
                return block.epoch, part.shard, part.first + place
            place -= part.count
        raise AssertionError("a permutation stays inside its block")

    def _block(self, epoch: int, stream: int, index: int) -> Block:
        start = stream * self.stream_length + index * self.window
        count = min(self.window, self.stream_length - index * self.window)
        seed = derive(self.seed, "block", epoch, stream, index)
        return Block(epoch, stream, index, tuple(self._ranges(epoch, start, count)), seed, pool=self.pool)

    def _ranges(self, epoch: int, start: int, count: int) -> Iterator[Range]:
        runs, ends, turn = self._layout(epoch)
        place = (start + turn) % self.total
        while count:
            slot = bisect_right(ends, place)
            left = int(ends[slot]) - place
            here = min(count, left)
            yield Range(int(self._shards[runs[slot]]), int(self._stops[runs[slot]]) - left, here)
            place, count = (place + here) % self.total, count - here

    def _make_layout(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
        """The runs in their order, the virtual position where each ends, and where the circle starts."""
        what = "shards" if self.chunk is None else "chunks"
        runs = permutation(len(self._shards), derive(self.seed, what, epoch))
        turn = int(np.random.PCG64(derive(self.seed, "start", epoch)).random_raw()) % self.total
        return runs, np.cumsum(self._counts[runs]), turn


def _runs(samples: Sequence[int], chunk: int | None) -> tuple[NDArray[np.int64], ...]:
    """Shards cut into runs of at most `chunk` samples (None: whole): shard, end and count of each, int64."""
    size = chunk or max(samples)
    firsts = [np.arange(0, count, size, dtype=np.int64) for count in samples]
    stops = [np.minimum(first + size, count) for first, count in zip(firsts, samples, strict=True)]
    shards = np.repeat(np.arange(len(samples), dtype=np.int64), [len(first) for first in firsts])
    return shards, np.concatenate(stops), np.concatenate(stops) - np.concatenate(firsts)

"""Which rows of which pool every stream gives to every global batch: a pure function that can start anywhere.

The batches take turns among the sizes of images (all images of one batch have the same size), and within the
batches of a size the rows of every stream take turns among its pools. Each pool has its own `Order`, which
deals it into the streams, so the position of a lane, one pool in one stream, is computed directly too. With a
single pool there are no turns, only its order.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from sfumato.core.seeds import derive
from sfumato.data.order.curriculum import Stage, StagedTurns
from sfumato.data.order.epochs import Block, Order
from sfumato.data.order.mixture import Turns
from sfumato.data.order.pools import Pool

Row = NDArray[np.int64]


class Deal:
    """The rows of all global batches, for batches of `rows` rows per stream."""

    def __init__(
        self,
        seed: int,
        pools: Sequence[Pool],
        streams: int,
        window: int,
        rows: int,
        chunk: int | None = None,
        stages: Sequence[Stage] = (),
    ) -> None:
        """`stages` are those of a curriculum, in rows of a stream and numbers of pools, which then have one
        size; none: all pools take turns throughout."""
        self._rows = rows
        self._of_one = np.zeros(rows, np.int64) if len(pools) == 1 else None
        """What is taken from a single pool, for which no turns need to be computed."""
        self._orders = _orders(seed, pools, streams, window, chunk)
        numbers = range(len(pools))
        self._sizes = [tuple(part) for _, part in groupby(numbers, key=lambda number: pools[number].size)]
        self._place = {
            pool: (size, place) for size, part in enumerate(self._sizes) for place, pool in enumerate(part)
        }
        self._turns_of_sizes = Turns(
            [sum(pools[number].weight for number in part) for part in self._sizes], derive(seed, "sizes")
        )
        self._turns_of_pools = {
            (size, stream): _turns(stages, [pools[number].weight for number in part], seed, size, stream)
            for size, part in enumerate(self._sizes)
            for stream in range(streams)
        }

    def pools_of_rows(self, batch: int, stream: int) -> Row:
        """The pool of each row that a stream gives to a global batch, int64 [rows]."""
        if self._of_one is not None:
            return self._of_one
        size = int(self._turns_of_sizes.between(batch, batch + 1)[0])
        first = int(self._turns_of_sizes.before(batch)[size]) * self._rows
        turns = self._turns_of_pools[size, stream].between(first, first + self._rows)
        return np.array(self._sizes[size], np.int64)[turns]

    def blocks(self, streams: Sequence[int], batch: int) -> Iterator[Block]:
        """The blocks of some streams in the order in which they are needed, from a global batch on."""
        lanes = [
            _Lane(number, stream, self._orders[pool], int(position))
            for number, stream in enumerate(streams)
            for size, part in enumerate(self._sizes)
            for pool, position in zip(part, self._positions(size, stream, batch), strict=True)
        ]
        needs = [(self._needed(lane), number) for number, lane in enumerate(lanes)]
        heapq.heapify(needs)
        while True:
            _, number = needs[0]
            yield lanes[number].next()
            heapq.heapreplace(needs, (self._needed(lanes[number]), number))

    def _positions(self, size: int, stream: int, batch: int) -> Row:
        """How many rows of each pool of a size went into the global batches before this one."""
        before = int(self._turns_of_sizes.before(batch)[size]) * self._rows
        return self._turns_of_pools[size, stream].before(before)

    def _needed(self, lane: _Lane) -> tuple[int, int, int]:
        """Sorts lanes by the global batch that needs the first row of their next block."""
        size, place = self._place[lane.order.pool]
        row = self._turns_of_pools[size, lane.stream].turn_of(place, lane.position)
        return self._turns_of_sizes.turn_of(size, row // self._rows), lane.rounds, lane.number


class _Lane:
    """One pool in one stream: its next block, and the position of that block's first row."""

    def __init__(self, number: int, stream: int, order: Order, position: int) -> None:
        self.number, self.stream, self.order, self.position, self.rounds = number, stream, order, position, 0
        self._blocks = order.blocks(stream, position)

    def next(self) -> Block:
        block = next(self._blocks)
        self.position += block.rows
        self.rounds += 1
        return block


def _turns(
    stages: Sequence[Stage], weights: Sequence[float], seed: int, size: int, stream: int
) -> Turns | StagedTurns:
    drawn = derive(seed, "pools", size, stream)
    return StagedTurns(stages, weights, drawn) if stages else Turns(weights, drawn)


def _orders(seed: int, pools: Sequence[Pool], streams: int, window: int, chunk: int | None) -> list[Order]:
    """One order per pool. They share the window, so that memory does not grow with their number."""
    if len(pools) == 1:
        return [Order(seed, pools[0].samples, streams, window, chunk=chunk)]
    whole = sum(pool.weight for pool in pools)
    orders = []
    for number, pool in enumerate(pools):
        # A pool smaller than the number of streams is laid out repeatedly: each stream gets some of it.
        samples = pool.samples * -(-streams // pool.total)
        share = max(1, round(window * pool.weight / whole))
        orders.append(Order(derive(seed, "pool", number), samples, streams, share, number, chunk))
    return orders

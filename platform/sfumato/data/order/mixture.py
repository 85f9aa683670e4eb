"""Weighted turns among several competitors, computed directly for any position.

Turns come in cycles. In a cycle every competitor has a fixed number of turns, its weight rounded to the
length of the cycle, and the seed draws their order. So proportions are exact over every cycle, and the number
of turns each competitor had before turn n is known without stepping through them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sfumato.core.seeds import derive
from sfumato.data.order.epochs import permutation

I64 = NDArray[np.int64]
_CYCLE = 1000
_LEAST_TURNS = 16


def apportioned(weights: Sequence[float], turns: int) -> I64:
    """Whole turns in proportion to the weights, at least one each, `turns` in all (largest remainders)."""
    shares = np.asarray(weights, np.float64) / sum(weights) * turns
    counts = np.maximum(np.floor(shares), 1).astype(np.int64)
    # Rounded, so that remainders that differ only in their last bits are equal on every machine.
    remainders = np.round(shares - counts, 6)
    while (missing := turns - int(counts.sum())) != 0:
        step = 1 if missing > 0 else -1
        may = remainders if step > 0 else np.where(counts > 1, remainders, np.inf)
        chosen = int(np.argmax(may)) if step > 0 else int(np.argmin(may))
        counts[chosen] += step
        remainders[chosen] -= step
    return counts


class Turns:
    """An endless sequence of turns 0, 1, 2, ... over `len(weights)` competitors."""

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        competitors = len(weights)
        self._seed = seed
        self.length = 1 if competitors == 1 else _CYCLE * -(-competitors * _LEAST_TURNS // _CYCLE)
        self.counts = apportioned(weights, self.length)
        self._cycle = lru_cache(maxsize=4)(self._make_cycle)

    def between(self, start: int, stop: int) -> I64:
        """The competitor at each of the turns `start .. stop - 1`, int64 [stop - start]."""
        if self.length == 1:
            return np.zeros(stop - start, np.int64)
        parts = []
        while start < stop:
            cycle, within = divmod(start, self.length)
            end = min(self.length, within + stop - start)
            parts.append(self._cycle(cycle)[0][within:end])
            start += end - within
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def before(self, turn: int) -> I64:
        """How many of the turns before `turn` each competitor had, int64 [competitors]."""
        cycle, within = divmod(turn, self.length)
        part = self.between(turn - within, turn)
        return cycle * self.counts + np.bincount(part, minlength=len(self.counts))

    def turn_of(self, competitor: int, number: int) -> int:
        """The turn at which a competitor is served for the `number`-th time, counted from 0."""
        cycle, within = divmod(number, int(self.counts[competitor]))
        if self.length == 1:
            return cycle
        _, places, starts = self._cycle(cycle)
        return cycle * self.length + int(places[starts[competitor] + within])

    def _make_cycle(self, cycle: int) -> tuple[I64, I64, I64]:
        """The competitor of each turn; all turns sorted by competitor; where each one's turns start there."""
        everyone = np.repeat(np.arange(len(self.counts)), self.counts)
        turns = everyone[permutation(self.length, derive(self._seed, "cycle", cycle))]
        starts = np.concatenate([[0], np.cumsum(self.counts)[:-1]])
        return turns, np.argsort(turns, kind="stable").astype(np.int64), starts

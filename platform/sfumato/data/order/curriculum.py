"""Curricula: some classes first, others later. The turns among pools change from stage to stage.

Within a stage the classes take turns as they do without a curriculum. A stage is so many rows of every
stream, so what came before any row is a sum over stages, found without stepping through them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sfumato.core.seeds import derive
from sfumato.data.order.mixture import I64, Turns

NEVER = sys.maxsize
"""The turn of a competitor that is not served any more."""


@dataclass(frozen=True, slots=True)
class Stage:
    """So many turns of these competitors; of the last stage, all that follow."""

    turns: int
    competitors: tuple[int, ...]


class StagedTurns:
    """Like `Turns`, with competitors that change from stage to stage."""

    def __init__(self, stages: Sequence[Stage], weights: Sequence[float], seed: int) -> None:
        self._competitors = len(weights)
        self._numbers = [np.array(stage.competitors, np.int64) for stage in stages]
        self._turns = [
            Turns([weights[number] for number in stage.competitors], derive(seed, "stage", at))
            for at, stage in enumerate(stages)
        ]
        self._starts = [sum(stage.turns for stage in stages[:at]) for at in range(len(stages))]
        counts = [np.zeros(self._competitors, np.int64)]
        for at, stage in enumerate(stages[:-1]):
            counts.append(counts[-1] + self._before(at, stage.turns))
        self._counts = counts

    def between(self, start: int, stop: int) -> I64:
        """The competitor at each of the turns `start .. stop - 1`, int64 [stop - start]."""
        parts = []
        for at, first in enumerate(self._starts):
            end = self._starts[at + 1] if at + 1 < len(self._starts) else stop
            low, high = max(start, first), min(stop, end)
            if low < high:
                parts.append(self._numbers[at][self._turns[at].between(low - first, high - first)])
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def before(self, turn: int) -> I64:
        """How many of the turns before `turn` each competitor had, int64 [competitors]."""
        at = self._stage(turn)
        return self._counts[at] + self._before(at, turn - self._starts[at])

    def turn_of(self, competitor: int, number: int) -> int:
        """The turn at which a competitor is served for the `number`-th time, counted from 0; NEVER if it is
        not."""
        for at, first in enumerate(self._starts):
            last = at + 1 == len(self._starts)
            if not last and number >= self._counts[at + 1][competitor]:
                continue
            place = np.flatnonzero(self._numbers[at] == competitor)
            if not len(place):
                continue
            return first + self._turns[at].turn_of(int(place[0]), number - int(self._counts[at][competitor]))
        return NEVER

    def _stage(self, turn: int) -> int:
        return int(np.searchsorted(self._starts, turn, side="right")) - 1

    def _before(self, at: int, turns: int) -> I64:
        found = np.zeros(self._competitors, np.int64)
        found[self._numbers[at]] = self._turns[at].before(turns)
        return found

"""Keeps training from running far ahead of its evaluations (`evaluate.ahead`)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray

from sfumato.core.progress import Progress

_POLL_S = 0.25


class Brake:
    """Called by every rank after each snapshot; waits until no more than `ahead` of them wait for evaluation.

    Rank 0 (`leads`) polls the board and informs the others by repeated `agree`: a single collective would
    time out during a long evaluation. After the last snapshot nothing waits.
    """

    def __init__(self, board: Any, ahead: int | None, leads: bool, agree: Callable[[Any], Any]) -> None:
        self._board = board
        self._ahead = ahead
        self._leads = leads
        self._agree = agree
        self._taken: list[int] = []

    def __call__(self, progress: Progress) -> None:
        self._taken.append(progress.images)
        if self._ahead is None or len(self._taken) <= self._ahead or progress.images >= progress.total_images:
            return
        wanted = self._taken[-1 - self._ahead]
        while not self._agree(self._leads and ray.get(self._board.evaluated_images.remote()) >= wanted):
            time.sleep(_POLL_S)

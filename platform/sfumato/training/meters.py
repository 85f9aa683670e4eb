"""Means over a log interval that cost one synchronisation each interval, not one a step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Means:
    """Weighted means of named values, summed on the device and brought to the host by `read`."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}

    def add(self, name: str, value: Tensor, rows: int) -> None:
        """A scalar that stands for `rows` rows, or one value a row."""
        value = value.detach().float()
        total = value.sum() if value.dim() else value * rows
        self._sums[name] = self._sums[name] + total if name in self._sums else total
        self._weights[name] = self._weights.get(name, 0.0) + rows

    def read(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The means over all ranks since the last call, by sorted name. Every rank must call it."""
        if not self._sums:
            return {}
        names = sorted(self._sums)
        device = self._sums[names[0]].device
        sums = torch.stack([self._sums[name] for name in names]).double()
        weights = torch.tensor([self._weights[name] for name in names], dtype=torch.float64, device=device)
        sums, weights = sum_over_ranks(torch.stack([sums, weights])).tolist()
        self._sums.clear()
        self._weights.clear()
        return {name: s / w if w else math.nan for name, s, w in zip(names, sums, weights, strict=True)}


class Clock:
    """Wall time of an interval and the part of it that was spent waiting for data."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self._start = time.perf_counter()
        self._waited = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._waited += time.perf_counter() - begin

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside the block belongs to no interval."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._start += time.perf_counter() - begin

    @property
    def seconds(self) -> float:
        return max(1e-9, time.perf_counter() - self._start)

    @property
    def wait_fraction(self) -> float:
        return self._waited / self.seconds

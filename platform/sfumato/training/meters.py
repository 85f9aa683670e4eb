"""Means over a log interval that cost one synchronisation each interval, not one a step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

Key = tuple[str, ...]


class Means:
    """Weighted means of named values, summed on the device and brought to the host by `read`.

    What is added counts when the update that it belongs to is closed by `commit`, which may leave it out.
    """

    def __init__(self) -> None:
        self._pending: dict[str, tuple[Tensor, float]] = {}
        self._sums: dict[Key, Tensor] = {}
        """By the names of an update: [2, names], weighted sums and weights."""
        self._weights: dict[tuple[Key, tuple[float, ...]], Tensor] = {}

    def add(self, name: str, value: Tensor, rows: int) -> None:
        """A scalar that stands for `rows` rows, or one value a row."""
        value = value.detach().float()
        total = value.sum() if value.dim() else value * rows
        if name in self._pending:
            before, weight = self._pending[name]
            self._pending[name] = (before + total, weight + rows)
        else:
            self._pending[name] = (total, rows)

    def commit(self, kept: Tensor) -> None:
        """Count what was added since the last call, where `kept` (a bool on the device) says so."""
        if not self._pending:
            return
        names = tuple(self._pending)
        totals = torch.stack([total for total, _ in self._pending.values()])
        weights = self._device_weights(
            names, tuple(weight for _, weight in self._pending.values()), totals.device
        )
        counted = torch.where(kept, torch.stack([totals, weights]), 0.0).double()
        self._sums[names] = self._sums[names] + counted if names in self._sums else counted
        self._pending.clear()

    def read(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The means over all ranks since the last call, by sorted name. Every rank must call it."""
        if not self._sums:
            return {}
        updates = sorted(self._sums)
        table = sum_over_ranks(torch.cat([self._sums[names] for names in updates], dim=1))
        sums, weights = table.tolist()
        flat = [name for names in updates for name in names]
        self._sums.clear()
        means = {name: s / w if w else math.nan for name, s, w in zip(flat, sums, weights, strict=True)}
        return dict(sorted(means.items()))

    def _device_weights(self, names: Key, weights: tuple[float, ...], device: torch.device) -> Tensor:
        """Kept, since a copy to the device in every step would make the host wait."""
        if (names, weights) not in self._weights:
            self._weights[names, weights] = torch.tensor(weights, dtype=torch.float32, device=device)
        return self._weights[names, weights]


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

"""Means over a log interval that cost one synchronisation per interval, not one per step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

Key = tuple[str, ...]
_TINY = 1e-30


class Means:
    """Weighted means of named values, summed on the device and brought to the host by `read`.

    Added values count once `commit` closes the update that they belong to; it may also drop them.
    """

    def __init__(self) -> None:
        self._pending: dict[str, tuple[Tensor, float | Tensor]] = {}
        self._sums: dict[Key, Tensor] = {}
        """By the names of an update: [2, names], weighted sums and weights."""
        self._weights: dict[tuple[Key, tuple[float, ...]], Tensor] = {}

    def add(self, name: str, value: Tensor, rows: int, weights_B: Tensor | None = None) -> None:
        """Add a scalar that stands for `rows` rows, or one value per row, which `weights_B` may weight."""
        value = value.detach().float()
        weight: float | Tensor = rows
        if weights_B is not None:
            # If all weights are zero, the mean is zero, unlike that of no update (NaN).
            value, weight = value * weights_B, weights_B.sum().clamp_min(_TINY)
        total = value.sum() if value.dim() else value * rows
        if name in self._pending:
            before, counted = self._pending[name]
            self._pending[name] = (before + total, counted + weight)
        else:
            self._pending[name] = (total, weight)

    def commit(self, kept: Tensor) -> None:
        """Count what was added since the last call if `kept` (a bool on the device) is true."""
        if not self._pending:
            return
        names = tuple(self._pending)
        totals = torch.stack([total for total, _ in self._pending.values()])
        weights = self._device_weights(names, [weight for _, weight in self._pending.values()], totals.device)
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

    def clear(self) -> None:
        """Forget everything added since the last `read`."""
        self._pending.clear()
        self._sums.clear()

    def _device_weights(self, names: Key, weights: Sequence[float | Tensor], device: torch.device) -> Tensor:
        """Caches counts of rows, since a copy to the device in every step would make the host wait."""
        counts = tuple(0.0 if isinstance(weight, Tensor) else weight for weight in weights)
        if (names, counts) not in self._weights:
            self._weights[names, counts] = torch.tensor(counts, dtype=torch.float32, device=device)
        known = self._weights[names, counts]
        measured = {at: weight for at, weight in enumerate(weights) if isinstance(weight, Tensor)}
        if not measured:
            return known
        return torch.stack([measured.get(at, known[at]) for at in range(len(weights))])


class Clock:
    """Wall time of an interval, and the part of it spent waiting for data."""

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
        """Exclude the time inside the block from every interval."""
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

"""Updates that were skipped because their gradient was not finite, counted on the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.errors import TrainingError


@dataclass(frozen=True, slots=True)
class Bad:
    """The updates of a phase whose gradients were not finite in an interval."""

    phase: str
    updates: int
    images: int
    """The first of them is on the global batch that starts at this many images."""


class NotFinite(TrainingError):
    """More updates than allowed had a gradient that is not finite. `bad` tells where it began."""

    def __init__(self, bad: Bad, message: str) -> None:
        super().__init__(message)
        self.bad = bad

    def __reduce__(self) -> tuple[type[NotFinite], tuple[Bad, str]]:
        return (type(self), (self.bad, str(self)))


class Skips:
    """Counts by phase, read once per log interval. All ranks count alike: they see the same gradient norm."""

    def __init__(self) -> None:
        self._counts: dict[str, Tensor] = {}
        """By phase: [skipped updates, images at the first of them] as float64."""

    def add(self, phase: str, kept: Tensor, images: int) -> None:
        """Note an update on the global batch that starts at `images`; `kept` is a bool on the device."""
        found = self._counts.get(phase)
        if found is None:
            found = torch.tensor([0.0, -1.0], dtype=torch.float64, device=kept.device)
            self._counts[phase] = found
        bad = kept.logical_not()
        first = bad & (found[0] == 0)
        found[1] = torch.where(first, float(images), found[1])
        found[0] += bad

    def clear(self) -> None:
        """Forget everything added since the last `read`."""
        self._counts.clear()

    def read(self) -> list[Bad]:
        """The phases that skipped updates since the last call, the earliest first."""
        if not self._counts:
            return []
        table = torch.stack(list(self._counts.values())).tolist()
        bad = [
            Bad(phase, int(count), int(images))
            for phase, (count, images) in zip(self._counts, table, strict=True)
            if count
        ]
        self._counts.clear()
        return sorted(bad, key=lambda item: item.images)

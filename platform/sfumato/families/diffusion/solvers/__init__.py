"""Ordinary differential equations from noise to image. A file here is a method.

`before` lets a stochastic sampler add noise ahead of each step (Karras et al. 2022, algorithm 2).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from sfumato.core.components import Component, Components

Slope = Callable[[Tensor, float], Tensor]
"""dx/dt at (x_NCHW, t)."""


class Solver(Component, ABC):
    """One step of a method."""

    brief: ClassVar[bool] = True

    @abstractmethod
    def step(self, slope: Slope, x_NCHW: Tensor, start: float, end: float) -> Tensor:
        """x at `end`, given x at `start`; only `end` may be zero, where the slope is not defined."""


SOLVERS: Components[Solver] = Components("sfumato.families.diffusion.solvers", Solver, default="heun")


def unchanged(x_NCHW: Tensor, t: float) -> tuple[Tensor, float]:
    """A deterministic step starts where the last one ended."""
    return x_NCHW, t


def integrate(
    solver: Solver,
    slope: Slope,
    x_NCHW: Tensor,
    times: Sequence[float],
    *,
    before: Callable[[Tensor, float], tuple[Tensor, float]] = unchanged,
) -> Tensor:
    """x at the last of `times`, given x at the first; they fall, and only the last may be zero."""
    for start, end in pairwise(times):
        x_NCHW, now = before(x_NCHW, start)
        x_NCHW = solver.step(slope, x_NCHW, now, end)
    return x_NCHW

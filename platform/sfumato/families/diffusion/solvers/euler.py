"""Euler's method: one slope per step."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from sfumato.families.diffusion.solvers import Slope, Solver


class Euler(Solver):
    """First order."""

    kind: Literal["euler"] = Field("euler", description="Selects Euler's method.")

    def step(self, slope: Slope, x_NCHW: Tensor, start: float, end: float) -> Tensor:
        """x + (end - start) slope."""
        return x_NCHW + (end - start) * slope(x_NCHW, start)


COMPONENT = Euler

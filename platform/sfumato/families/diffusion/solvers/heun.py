"""Heun's method (Karras et al. 2022, algorithm 1): a step averages the slope at both of its ends.

It costs two slopes per step, 2 n - 1 in all if the last time is zero: the step that ends at zero noise, where
the slope is not defined, stays first order.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from sfumato.families.diffusion.solvers import Slope, Solver


class Heun(Solver):
    """Second order."""

    kind: Literal["heun"] = Field("heun", description="Selects Heun's method.")

    def step(self, slope: Slope, x_NCHW: Tensor, start: float, end: float) -> Tensor:
        """Euler's step, corrected by the slope at its end."""
        first_NCHW = slope(x_NCHW, start)
        euler_NCHW = x_NCHW + (end - start) * first_NCHW
        if end <= 0:
            return euler_NCHW
        last_NCHW = slope(euler_NCHW, end)
        return x_NCHW + (end - start) * (first_NCHW + last_NCHW) / 2


COMPONENT = Heun

"""Ordinary differential equations from noise to image: Euler's method and Heun's.

Karras et al. 2022, algorithms 1 and 2: a second-order step averages the slope at both ends; the step that
ends at zero noise, where the slope is not defined, stays first order. `before` lets a stochastic sampler
add noise ahead of each step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor

Slope = Callable[[Tensor, float], Tensor]
"""dx/dt at (x_NCHW, t)."""


def unchanged(x_NCHW: Tensor, t: float) -> tuple[Tensor, float]:
    """A deterministic step starts where the last one ended."""
    return x_NCHW, t


def integrate(
    slope: Slope,
    x_NCHW: Tensor,
    times: Sequence[float],
    *,
    second_order: bool,
    before: Callable[[Tensor, float], tuple[Tensor, float]] = unchanged,
) -> Tensor:
    """x at the last of `times`, given x at the first; they fall, and only the last may be zero.

    Costs one slope a step, or two (2 n - 1 in all when the last time is zero) if `second_order`.
    """
    for start, end in pairwise(times):
        x_NCHW, now = before(x_NCHW, start)
        first_NCHW = slope(x_NCHW, now)
        euler_NCHW = x_NCHW + (end - now) * first_NCHW
        if second_order and end > 0:
            last_NCHW = slope(euler_NCHW, end)
            x_NCHW = x_NCHW + (end - now) * (first_NCHW + last_NCHW) / 2
        else:
            x_NCHW = euler_NCHW
    return x_NCHW

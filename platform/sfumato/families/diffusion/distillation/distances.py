"""How far two answers are from each other."""

from __future__ import annotations

import math

from torch import Tensor

HUBER_PER_ROOT_DIMENSION = 0.00054
SMALLEST = 1e-20


def pseudo_huber(a_BCHW: Tensor, b_BCHW: Tensor, c: float | None = None) -> Tensor:
    """sqrt(||a - b||^2 + c^2) - c, [B] (Song & Dhariwal 2024, eq. 8); None means their c for the size.

    Where a = b and c = 0 its gradient is zero.
    """
    if c is None:
        c = HUBER_PER_ROOT_DIMENSION * math.sqrt(a_BCHW[0].numel())
    return (squared(a_BCHW, b_BCHW) + c**2).clamp(min=SMALLEST).sqrt() - c


def squared(a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
    """||a - b||^2, [B]."""
    return (a_BCHW - b_BCHW).square().flatten(1).sum(dim=1)

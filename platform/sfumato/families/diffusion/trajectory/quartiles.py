"""The loss by noise level, as metrics that average correctly over any split of the data."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def quartiles(loss_B: Tensor, t_B: Tensor, timesteps: int) -> dict[str, Tensor]:
    """The loss by quarter of the timesteps, from least noise (q1) to most (q4), each [B].

    A row outside the quarter counts as zero and a row inside it by the inverse of the quarter's
    probability, so that the plain mean over any rows, ranks and steps estimates the quarter's mean loss.
    """
    quarter_B = (t_B * 4) // timesteps
    found = {}
    for quarter in range(4):
        size = -(-(quarter + 1) * timesteps // 4) - (-(-quarter * timesteps // 4))
        if size:
            weight_B = (quarter_B == quarter).float() * (timesteps / size)
            found[f"loss_q{quarter + 1}"] = loss_B * weight_B
    return found


def quartiles_of_normal(loss_B: Tensor, z_B: Tensor) -> dict[str, Tensor]:
    """The loss by quarter of a noise level that is a rising function of z ~ N(0, 1)."""
    return quartiles_of_uniform(loss_B, 0.5 * (1 + torch.erf(z_B / math.sqrt(2))))


def quartiles_of_uniform(loss_B: Tensor, u_B: Tensor) -> dict[str, Tensor]:
    """The loss by quarter of a noise level that is a rising function of u ~ U[0, 1)."""
    return quartiles(loss_B, (u_B * 4).long().clamp(0, 3), 4)

"""A time, or the length of a step, as waves that a network reads."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

MAX_PERIOD = 10_000.0
FREQUENCIES = 256
"""Waves that `embedding` takes."""


def sinusoids(t_B: Tensor, size: int, max_period: float = MAX_PERIOD) -> Tensor:
    """[cos(t w_i), sin(t w_i)] for size/2 frequencies from 1 down to about 1/max_period, [B, size]."""
    half = size // 2
    steps = torch.arange(half, dtype=torch.float32, device=t_B.device) / half
    angle_BF = t_B[:, None] * torch.exp(-math.log(max_period) * steps)
    return torch.cat([angle_BF.cos(), angle_BF.sin()], dim=-1)


def embedding(width: int) -> nn.Sequential:
    """From `FREQUENCIES` waves of a time to the width of tokens."""
    return nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

"""Rotary positions on a grid (Su et al. 2021; in two dimensions as in EVA-02 and LlamaGen, Sun et al. 2024).

Half of a head's pairs of channels turn with the row, half with the column, each pair at its own speed.
"""

from __future__ import annotations

import torch
from torch import Tensor

BASE = 10_000.0


def grid_angles(height: int, width: int, head: int, *, first: int = 1) -> Tensor:
    """Angles [first + height * width, head / 2]; the `first` tokens before the grid are not turned."""
    quarter = head // 4
    speed = BASE ** -(torch.arange(quarter) / quarter)
    rows = torch.arange(height)[:, None] * speed
    columns = torch.arange(width)[:, None] * speed
    both = torch.cat(
        [
            rows[:, None].expand(height, width, quarter),
            columns[None].expand(height, width, quarter),
        ],
        dim=2,
    )
    return torch.cat([torch.zeros(first, 2 * quarter), both.flatten(0, 1)])


def turned(x_BHTD: Tensor, angles_TP: Tensor) -> Tensor:
    """Queries or keys [B, heads, T, D], each pair of neighbouring channels rotated by its angle."""
    cos, sin = angles_TP.cos().to(x_BHTD.dtype), angles_TP.sin().to(x_BHTD.dtype)
    one, two = x_BHTD[..., ::2], x_BHTD[..., 1::2]
    return torch.stack([one * cos - two * sin, one * sin + two * cos], dim=-1).flatten(-2)

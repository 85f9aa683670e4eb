"""What the networks that are trained on a reference's own images are fed: scaled and shifted pixels."""

from __future__ import annotations

import torch
from torch import Tensor


def scale(images_BCHW: Tensor) -> Tensor:
    """0..255 to [-1, 1]."""
    return images_BCHW.float() / 127.5 - 1


def shift(x_BCHW: Tensor, limit: int) -> Tensor:
    """Every image moved by its own random offset of at most `limit` pixels; edges are repeated."""
    rows, _, height, width = x_BCHW.shape
    dy_B1 = torch.randint(-limit, limit + 1, (rows, 1))
    dx_B1 = torch.randint(-limit, limit + 1, (rows, 1))
    y_BH = (torch.arange(height) + dy_B1).clamp(0, height - 1)
    x_BW = (torch.arange(width) + dx_B1).clamp(0, width - 1)
    batch_B11 = torch.arange(rows)[:, None, None]
    return x_BCHW.permute(0, 2, 3, 1)[batch_B11, y_BH[:, :, None], x_BW[:, None, :]].permute(0, 3, 1, 2)

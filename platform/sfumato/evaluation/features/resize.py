"""Resizes to a network's input exactly as the reference programs do."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.core.batch import DataSpec


def tensorflow_bilinear(x_BCHW: Tensor, side: int) -> Tensor:
    """Bilinear without antialiasing, corners as TensorFlow 1 aligns them: the resize inside the FID graph.

    Output pixel i is at i * (input / output) without a half-pixel offset. Such shrinking discards pixels,
    and figures depend on it (Parmar et al. 2022); published FIDs were computed with it.
    """
    rows = _weigh(x_BCHW.shape[2], side, x_BCHW)
    columns = _weigh(x_BCHW.shape[3], side, x_BCHW)
    left, right, dx = columns
    x = x_BCHW[..., left]
    x = x + (x_BCHW[..., right] - x) * dx
    top, bottom, dy = rows
    upper = x[:, :, top]
    return upper + (x[:, :, bottom] - upper) * dy[:, None]


def _weigh(size: int, side: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scale = torch.tensor(size / side, dtype=torch.float32, device=like.device)
    place = torch.arange(side, dtype=torch.float32, device=like.device) * scale
    low = place.long()
    return low, (low + 1).clamp_max(size - 1), (place - low.float()).to(like.dtype)


def bicubic(x_BCHW: Tensor, side: int) -> Tensor:
    """Antialiased bicubic as in Pillow, in float, cut to 0..255: as clean-fid resizes (Parmar 2022)."""
    x = F.interpolate(x_BCHW, (side, side), mode="bicubic", antialias=True, align_corners=False)
    return x.clamp(0, 255)


def three_channels(x_BCHW: Tensor) -> Tensor:
    """Grey images repeated into three channels; others unchanged."""
    return x_BCHW.expand(-1, 3, -1, -1) if x_BCHW.shape[1] == 1 else x_BCHW


def channel_problems(features: str, data: DataSpec) -> list[str]:
    """A line if images have neither one nor three channels."""
    if data.channels in (1, 3):
        return []
    return [f"features {features} needs images of 1 or 3 channels, this data has {data.channels}"]


def standardise(x_BCHW: Tensor, mean: tuple[float, ...], deviation: tuple[float, ...]) -> Tensor:
    """0..255 to a network's input: (x / 255 - mean) / deviation, by channel."""
    mean_C11, deviation_C11 = (
        torch.tensor(v, device=x_BCHW.device)[:, None, None] for v in (mean, deviation)
    )
    return (x_BCHW / 255 - mean_C11) / deviation_C11

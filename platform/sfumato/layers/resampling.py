"""Doubling and halving of maps through a small filter, so that neither leaves a pattern (StyleGAN2, R3GAN).

A filter is given by the taps of one direction, such as 1, 3, 3, 1; the other direction's are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMOOTH = (1, 3, 3, 1)


class _Filter(nn.Module):
    kernel: Tensor

    def __init__(self, taps: Sequence[float], gain: float) -> None:
        super().__init__()
        taps_K = torch.tensor(taps, dtype=torch.float32)
        kernel_KK = taps_K[:, None] * taps_K[None]
        self.register_buffer("kernel", gain * kernel_KK / kernel_KK.sum(), persistent=False)

    def _of(self, channels: int, x_BCHW: Tensor) -> Tensor:
        kernel: Tensor = self.kernel.to(x_BCHW.dtype).expand(channels, 1, -1, -1)
        return kernel


class Up(_Filter):
    """[B, C, H, W] to [B, C, 2H, 2W]: zeros between the pixels, then the filter, of 3 or 4 taps."""

    def __init__(self, taps: Sequence[float] = SMOOTH) -> None:
        super().__init__(taps, 4.0)
        self.more = len(taps) % 2

    def forward(self, x_BCHW: Tensor) -> Tensor:
        channels = x_BCHW.shape[1]
        kernel = self._of(channels, x_BCHW)
        return F.conv_transpose2d(x_BCHW, kernel, None, 2, 1, output_padding=self.more, groups=channels)


class Down(_Filter):
    """[B, C, H, W] to [B, C, H/2, W/2]: the filter, of 3 or 4 taps, then every second pixel."""

    def __init__(self, taps: Sequence[float] = SMOOTH) -> None:
        super().__init__(taps, 1.0)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        channels = x_BCHW.shape[1]
        return F.conv2d(x_BCHW, self._of(channels, x_BCHW), None, 2, 1, groups=channels)


class Blur(_Filter):
    """The filter alone, around which `padding` pixels of zeros are added on every side."""

    def __init__(self, padding: int, gain: float = 1.0, taps: Sequence[float] = SMOOTH) -> None:
        super().__init__(taps, gain)
        self.padding = padding

    def forward(self, x_BCHW: Tensor) -> Tensor:
        channels = x_BCHW.shape[1]
        return F.conv2d(x_BCHW, self._of(channels, x_BCHW), None, 1, self.padding, groups=channels)

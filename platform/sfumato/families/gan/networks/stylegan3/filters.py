"""Low-pass filters of StyleGAN3 (Karras et al. 2021, sec. 3.2 and app. C.1), and nonlinearities between them.

A leaky ReLU makes frequencies that its map's sampling rate cannot hold. So the map is sampled more finely for
it, and a low-pass filter removes what lies above the cutoff before the map is sampled as finely as the next
layer needs.

    h(x) = sinc(2 f_c x) w(x)        separable: 2 f_c times, a Kaiser window whose beta follows from the width
    h(r) = J_1(2 pi f_c r) / r       radially symmetric ("jinc"), the same window in each direction
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.families.gan.layers.equalised import GAIN, LEAK

LARGEST = 256.0
"""Activations are kept within this size, as by the authors for 16-bit numbers."""


def kaiser_beta(taps: int, width: float, rate: float) -> float:
    """Of the window that leaves a transition band of this width (Kaiser 1974).

    The attenuation A that so many taps reach is 2.285 (taps - 1) pi width / (rate / 2) + 7.95 decibels.
    """
    attenuation = 2.285 * (taps - 1) * math.pi * width / (rate / 2) + 7.95
    if attenuation > 50:
        return 0.1102 * (attenuation - 8.7)
    if attenuation > 21:
        return 0.5842 * math.pow(attenuation - 21, 0.4) + 0.07886 * (attenuation - 21)
    return 0.0


def low_pass(taps: int, cutoff: float, width: float, rate: float, *, radial: bool = False) -> Tensor:
    """The filter's taps float32 [taps], or [taps, taps] if it is radially symmetric; their sum is 1.

    `cutoff`, `width` (of the transition band) and `rate` (of sampling) are in cycles per image. One tap is
    no filter.
    """
    if taps == 1:
        return torch.ones(1)
    x_K = (torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2) / rate
    window_K = torch.kaiser_window(
        taps, periodic=False, beta=kaiser_beta(taps, width, rate), dtype=torch.float64
    )
    if radial:
        r_KK = torch.hypot(x_K[:, None], x_K[None])
        found: Tensor = (
            torch.special.bessel_j1(2 * math.pi * cutoff * r_KK) / r_KK * window_K[:, None] * window_K
        )
    else:
        found = torch.sinc(2 * cutoff * x_K) * window_K
    return (found / found.sum()).float()


class FilteredActivation(nn.Module):
    """Bias, finer sampling, leaky ReLU, low-pass filter, coarser sampling.

    `up_K` are the separable taps before the leaky ReLU, `down` those after it, [K] or [K, K]. Without
    `bends` the ReLU is left out. A map of any side becomes one of side `side`, around the same centre.
    """

    up_K: Tensor
    down: Tensor

    def __init__(
        self, up_K: Tensor, down: Tensor, *, up: int, down_by: int, side: int, bends: bool = True
    ) -> None:
        super().__init__()
        self.register_buffer("up_K", up_K * up, persistent=False)  # in each direction
        self.register_buffer("down", down, persistent=False)
        self.up, self.down_by, self.side, self.bends = up, down_by, side, bends

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self._finer(x_BCHW)
        if self.bends:
            x_BCHW = GAIN * F.leaky_relu(x_BCHW, LEAK)
        return self._coarser(x_BCHW.clamp(-LARGEST, LARGEST))

    def _finer(self, x_BCHW: Tensor) -> Tensor:
        """With as many pixels as the second filter needs; beyond the map there are zeros."""
        channels, before = x_BCHW.shape[1], x_BCHW.shape[-1]
        taps = len(self.up_K)
        needed = (self.side - 1) * self.down_by + self.down.shape[-1]
        added = needed - before * self.up + taps - 1
        # Where the first pixel that is needed lies in the full convolution, which starts `taps - 1` earlier
        # than the map; an odd remainder falls on the right.
        first = taps - 1 - (added + self.up) // 2
        if taps > 1:
            kernel_K = self.up_K.to(x_BCHW.dtype)
            for shape, stride in (((taps, 1), (self.up, 1)), ((1, taps), (1, self.up))):
                kernel = kernel_K.view(1, 1, *shape).expand(channels, -1, -1, -1)
                x_BCHW = F.conv_transpose2d(x_BCHW, kernel, stride=stride, groups=channels)
        last = needed - (x_BCHW.shape[-1] - first)
        return F.pad(x_BCHW, (-first, last, -first, last))

    def _coarser(self, x_BCHW: Tensor) -> Tensor:
        channels, kernel = x_BCHW.shape[1], self.down.to(x_BCHW.dtype)
        if kernel.dim() == 2:
            whole = kernel.expand(channels, 1, -1, -1)
            return F.conv2d(x_BCHW, whole, stride=self.down_by, groups=channels)
        if len(kernel) == 1:
            return x_BCHW[..., :: self.down_by, :: self.down_by]
        for shape, stride in (((-1, 1), (self.down_by, 1)), ((1, -1), (1, self.down_by))):
            part = kernel.view(1, 1, *shape).expand(channels, -1, -1, -1)
            x_BCHW = F.conv2d(x_BCHW, part, stride=stride, groups=channels)
        return x_BCHW

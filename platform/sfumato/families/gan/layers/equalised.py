"""Layers of equalised learning rate (ProGAN: Karras et al. 2018, sec. 4.1).

Weights start from N(0, 1) and are multiplied by 1 / sqrt(fan-in) in every pass, so that Adam, whose steps do
not depend on a gradient's scale, moves all layers at the same speed. `rate` below 1 slows a layer down
(StyleGAN's mapping: Karras et al. 2019, app. C).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEAK = 0.2
GAIN = math.sqrt(2.0)
EPS = 1e-8


class EqualLinear(nn.Module):
    """A linear map."""

    def __init__(
        self, inputs: int, outputs: int, *, bias: bool = True, start: float = 0.0, rate: float = 1.0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), start / rate)) if bias else None
        self.scale, self.rate = rate / math.sqrt(inputs), rate

    def forward(self, x_BC: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias * self.rate
        return F.linear(x_BC, self.weight * self.scale, bias)


class EqualConv2d(nn.Module):
    """A convolution that keeps the side, unless `stride` or `padding` are given."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.scale = 1 / math.sqrt(inputs * kernel**2)
        self.stride, self.padding = stride, kernel // 2 if padding is None else padding

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.conv2d(x_BCHW, self.weight * self.scale, self.bias, self.stride, self.padding)


def activated(x: Tensor) -> Tensor:
    """A leaky ReLU that keeps the second moment of normal numbers about as it is."""
    return GAIN * F.leaky_relu(x, LEAK)


def pixel_norm(x_BC: Tensor) -> Tensor:
    """Each pixel's (or row's) vector divided by the root of its mean square (Karras et al. 2018, sec.
    4.2)."""
    return x_BC * (x_BC.square().mean(1, keepdim=True) + EPS).rsqrt()

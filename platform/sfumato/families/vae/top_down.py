"""The networks of a hierarchical VAE whose groups of latents are drawn from the coarsest grid to the finest.

Child 2021, "Very deep VAEs generalize autoregressive models and can outperform them on images", fig. 3:

    x = nearest(coarser x) + bias            at the first group of a level
    q(z | x, a) = N(f([x, a])),    p(z | x) = N(g_1(x)),    a: the encoder's features of that size
    x = x + g_2(x);    x = x + W z;    x = x + residual block
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Step(NamedTuple):
    """What a group did: its features, its KL in nats [B], and log p(z) - log q(z) of its draw [B]."""

    x_BWhw: Tensor
    kl_B: Tensor
    log_ratio_B: Tensor


class Block(nn.Module):
    """1x1, 3x3, 3x3, 1x1 convolutions, each after a GELU, through a narrow middle; on a grid of one or two
    pixels all are 1x1."""

    def __init__(
        self, inputs: int, middle: int, outputs: int, side: int, *, last: float = 1.0, residual: bool = False
    ) -> None:
        """`last` multiplies the last convolution's initial weights; 0 lets the block begin as nothing."""
        super().__init__()
        kernel = 3 if side > 2 else 1
        found = [
            nn.Conv2d(i, o, k, padding=k // 2)
            for i, o, k in (
                (inputs, middle, 1),
                (middle, middle, kernel),
                (middle, middle, kernel),
                (middle, outputs, 1),
            )
        ]
        self.layers = nn.ModuleList(found)
        self._residual = residual
        for layer in found:
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            found[-1].weight.mul_(last)

    def forward(self, x_BWhw: Tensor) -> Tensor:
        out = x_BWhw
        for layer in self.layers:
            out = layer(F.gelu(out))
        return x_BWhw + out if self._residual else out


class Group(nn.Module):
    """One group of latents [dim, h, w]; it draws from the posterior where features of an image are given."""

    def __init__(self, width: int, middle: int, dim: int, side: int, scale: float) -> None:
        """`scale` multiplies the initial weights of what is added to the features: 1 / sqrt(groups)."""
        super().__init__()
        self._dim = dim
        self.posterior: nn.Module = Block(2 * width, middle, 2 * dim, side)
        self.prior: nn.Module = Block(width, middle, 2 * dim + width, side, last=0.0)
        self.add: nn.Module = nn.Conv2d(dim, width, 1)
        self.block: nn.Module = Block(width, middle, width, side, last=scale, residual=True)
        with torch.no_grad():
            self.add.weight.mul_(scale)

    def forward(self, x_BWhw: Tensor, given_BWhw: Tensor | None, noise_BZhw: Tensor) -> Step:
        """Noise is standard normal, times a temperature in drawing; zero gives the mean."""
        at = self.prior(x_BWhw)
        mean, log_std = at[:, : 2 * self._dim].float().chunk(2, dim=1)
        kl_B = log_ratio_B = mean.new_zeros(len(mean))
        if given_BWhw is None:
            z = mean + log_std.exp() * noise_BZhw
        else:
            # It sees the features without the prior's share, which is added below.
            own_mean, own_log_std = self.posterior(torch.cat([x_BWhw, given_BWhw], 1)).float().chunk(2, dim=1)
            z = own_mean + own_log_std.exp() * noise_BZhw
            kl_B = _sum(_kl(own_mean, own_log_std, mean, log_std))
            log_ratio_B = _sum(_log_normal(z, mean, log_std) - _log_normal(z, own_mean, own_log_std))
        x_BWhw = x_BWhw + at[:, 2 * self._dim :]
        return Step(self.block(x_BWhw + self.add(z.to(x_BWhw.dtype))), kl_B, log_ratio_B)


def _kl(mean: Tensor, log_std: Tensor, prior_mean: Tensor, prior_log_std: Tensor) -> Tensor:
    """KL of two normal distributions, elementwise, in nats."""
    ratio = (2 * (log_std - prior_log_std)).exp()
    distance = (mean - prior_mean).square() * (-2 * prior_log_std).exp()
    return 0.5 * (ratio + distance - 1) - (log_std - prior_log_std)


def _log_normal(z: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    return -0.5 * ((z - mean) * (-log_std).exp()).square() - log_std - 0.5 * math.log(2 * math.pi)


def _sum(each: Tensor) -> Tensor:
    return each.flatten(1).sum(dim=1)

"""Invertible layers whose log-determinants are cheap, and the reshaping between levels.

A bijection maps x [B, C, H, W] to y and log |det dy/dx| [B], given the class [B] (zero everywhere for a
network without classes), and back. Log-determinants are float32 whatever autocast computes in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_TINY = 1e-6


@dataclass(frozen=True, slots=True)
class Decoding:
    """How images are drawn, for the maps that have a choice.

    `guidance` is the weight of the class (1: the plain model), constant or rising from the first token of a
    map to the last. `order` says how an autoregressive map is inverted: token after token with a cache of
    keys and values, the same without a cache, or all tokens at once until none changes.
    """

    guidance: float = 1.0
    rising: bool = True
    order: Literal["cache", "sequential", "jacobi"] = "cache"


class Bijection(nn.Module, ABC):
    """An invertible map of images."""

    @abstractmethod
    def forward(self, x_BCHW: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]: ...

    @abstractmethod
    def inverse(self, y_BCHW: Tensor, label_B: Tensor) -> Tensor: ...

    def decode(self, y_BCHW: Tensor, label_B: Tensor, decoding: Decoding) -> Tensor:
        """`inverse` in drawing, which guidance may lead away from the map's own inverse."""
        return self.inverse(y_BCHW, label_B)


class ActNorm(nn.Module):
    """y = (x + loc) exp(log_scale), per channel (Kingma & Dhariwal 2018, sec. 3.1).

    Inside `fitting`, a pass first sets both so that its output has mean 0 and variance 1.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.fit = False

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        if self.fit:
            self._fit(x_BCHW)
        log_scale = _wide(self.log_scale)
        y_BCHW = (x_BCHW + self.loc[:, None, None]) * log_scale.exp()[:, None, None]
        pixels = x_BCHW.shape[2] * x_BCHW.shape[3]
        return y_BCHW, (log_scale.sum() * pixels).expand(len(x_BCHW))

    def inverse(self, y_BCHW: Tensor) -> Tensor:
        return y_BCHW * (-self.log_scale).exp()[:, None, None] - self.loc[:, None, None]

    @torch.no_grad()
    def _fit(self, x_BCHW: Tensor) -> None:
        x_CN = x_BCHW.transpose(0, 1).flatten(1).double()
        self.loc.copy_(-x_CN.mean(1))
        self.log_scale.copy_(-(x_CN.std(1, correction=0) + _TINY).log())


@contextmanager
def fitting(network: nn.Module) -> Iterator[None]:
    """Data-dependent initialisation: passes inside the block set every `ActNorm` of the network."""
    layers = [module for module in network.modules() if isinstance(module, ActNorm)]
    for layer in layers:
        layer.fit = True
    try:
        yield
    finally:
        for layer in layers:
            layer.fit = False


class InvertibleConv(nn.Module):
    """A 1x1 convolution W = P L (U + diag(s)) with log |det| = H W sum log |s| (ibid., eq. 10, 11).

    P and the signs of s stay as drawn; L, U and log |s| learn, so that W can never become singular.
    """

    permutation: Tensor
    sign: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        rotation, _ = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64))
        permutation, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        self.register_buffer("permutation", permutation.float())
        self.register_buffer("sign", diagonal.sign().float())
        self.lower = nn.Parameter(lower.tril(-1).float())
        self.upper = nn.Parameter(upper.triu(1).float())
        self.log_s = nn.Parameter(diagonal.abs().log().float())

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        # Rounded to bf16, it would not be the map whose determinant is counted.
        with torch.autocast(x_BCHW.device.type, enabled=False):
            y_BCHW = F.conv2d(x_BCHW, self.weight()[:, :, None, None])
        pixels = x_BCHW.shape[2] * x_BCHW.shape[3]
        return y_BCHW, (_wide(self.log_s).sum() * pixels).expand(len(x_BCHW))

    def inverse(self, y_BCHW: Tensor) -> Tensor:
        inverse = torch.linalg.inv(self.weight().double()).to(y_BCHW.dtype)
        return F.conv2d(y_BCHW, inverse[:, :, None, None])

    def weight(self) -> Tensor:
        """W [C, C]."""
        lower, upper, log_s = _wide(self.lower), _wide(self.upper), _wide(self.log_s)
        one = torch.eye(len(log_s), device=log_s.device, dtype=log_s.dtype)
        diagonal = torch.diag(self.sign * log_s.exp())
        return self.permutation @ (lower.tril(-1) + one) @ (upper.triu(1) + diagonal)


def _wide(parameter: Tensor) -> Tensor:
    """At least float32: a strategy may gather parameters in bfloat16."""
    return parameter.to(torch.promote_types(parameter.dtype, torch.float32))


def squeeze(x_BCHW: Tensor, side: int = 2) -> Tensor:
    """[B, C, H, W] to [B, side^2 C, H/side, W/side]: each square of pixels becomes channels."""
    return F.pixel_unshuffle(x_BCHW, side)


def unsqueeze(x_BCHW: Tensor, side: int = 2) -> Tensor:
    """The inverse of `squeeze`."""
    return F.pixel_shuffle(x_BCHW, side)


def sum_pixels(x_BCHW: Tensor) -> Tensor:
    """The sum over all but the rows, [B] float32."""
    return x_BCHW.float().sum((1, 2, 3))

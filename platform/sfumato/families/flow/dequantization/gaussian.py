"""Normal noise instead of dequantisation (TarFlow; Zhai et al. 2024, sec. 3.3), which sampling removes again.

The flow models y = x + std eps, a smooth density that it can learn everywhere, unlike one that lies near 256
levels. Still there is a bound on the probability of the levels: with p(y) the flow's density and P(k | y) any
way to return from y to a level,

    log P(k) >= E_q [log p(y) + log P(k | y) - log q(y | k)],    q(y | k) = N(y; x_k, std^2)

Here P(k | y) is the softmax over levels of -(y - x_k)^2 / (2 std^2), for which the last two terms nearly
cancel where levels lie closer than std: the bound is the density of y in levels.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from sfumato.families.flow.bijection import sum_pixels
from sfumato.families.flow.dequantization import LEVELS, Dequantization, DequantizerNet
from sfumato.families.flow.levels import Shape


class GaussianConfig(Dequantization):
    """Normal noise is added to images, and removed from samples by the score (Zhai et al. 2024)."""

    normal_noise: ClassVar[bool] = True
    kind: Literal["gaussian"] = Field("gaussian", description="Selects normal noise.")
    std: float = Field(
        0.05, gt=0, le=1, description="Standard deviation of the noise; images lie in [-1, 1]."
    )

    @property
    def noise_std(self) -> float:
        """In [0, 1), where 256 levels lie."""
        return self.std * (LEVELS - 1) / 2 / LEVELS

    def build(self, shape: Shape) -> Gaussian:
        """Without parameters."""
        return Gaussian(self.noise_std * LEVELS)


class Gaussian(DequantizerNet):
    """u = 1/2 + std eps, std in levels: a level's value is the middle of its step."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self._std = std

    @torch.no_grad()
    def forward(self, k_BCHW: Tensor, noise_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """u [B, C, H, W], and log q(y | k) - log P(k | y) [B], from standard normal noise."""
        u_BCHW = 0.5 + self._std * noise_BCHW
        return u_BCHW, sum_pixels(self._log_all(k_BCHW + u_BCHW))

    def _log_all(self, y_BCHW: Tensor) -> Tensor:
        """log of the sum over levels j of N(y; j + 1/2, std^2), what remains of the two terms."""
        total_BCHW = torch.full_like(y_BCHW, -torch.inf)
        for level in range(LEVELS):
            z_BCHW = (y_BCHW - level - 0.5) / self._std
            total_BCHW = torch.logaddexp(total_BCHW, -0.5 * z_BCHW.square())
        return total_BCHW - math.log(self._std) - 0.5 * math.log(2 * math.pi)


COMPONENT = GaussianConfig

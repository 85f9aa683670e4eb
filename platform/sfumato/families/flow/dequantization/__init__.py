"""From 256 levels to a continuous value: y = k + u, with k the image in 0..255 and u in [0, 1).

A density p(y) bounds the probability of the levels: log P(k) >= E_u [log p(k + u) - log q(u | k)]
(Theis et al. 2016, eq. 5; Ho et al. 2019, eq. 11). A file here is a distribution q of the noise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from sfumato.core.components import Component, Components
from sfumato.families.flow.levels import Shape

LEVELS = 256


class DequantizerNet(nn.Module, ABC):
    """Draws the noise."""

    @abstractmethod
    def forward(self, k_BCHW: Tensor, noise_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """u [B, C, H, W] and log q(u | k) [B], from the noise that the configuration names."""


class Dequantization(Component, ABC):
    """A distribution of the noise; it builds its network."""

    normal_noise: ClassVar[bool] = False
    """Whether the network takes standard normal noise instead of uniform noise."""

    @property
    def noise_std(self) -> float:
        """The standard deviation of normal noise, in [0, 1), that sampling removes; 0 for none."""
        return 0.0

    @abstractmethod
    def build(self, shape: Shape) -> DequantizerNet:
        """The network for images of this shape."""


DEQUANTIZATIONS: Components[Dequantization] = Components(
    "sfumato.families.flow.dequantization", Dequantization, default="uniform"
)


def to_levels(image_BCHW: Tensor) -> Tensor:
    """Images in [-1, 1] to whole numbers 0..255, float32."""
    return ((image_BCHW.float() + 1) * 127.5).round().clamp(0, LEVELS - 1)


def from_unit(x_BCHW: Tensor) -> Tensor:
    """A continuous value of [0, 1) to the image in [-1, 1] of the level it lies in; outside, the nearest.

    NaN stays NaN: a flow whose inverse broke down must not pass for one that draws grey.
    """
    return (x_BCHW * LEVELS).floor().clamp(0, LEVELS - 1) / 127.5 - 1

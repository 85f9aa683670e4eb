"""Perceptual distances of images, which the loss of an autoencoder may hold.

A file here is a distance: its configuration, a `PerceptualConfig`, and the frozen network that it builds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.core.batch import DataSpec
from sfumato.core.components import Component, Components
from sfumato.core.family import Frozen


class Perceptual(nn.Module, ABC):
    """LPIPS (Zhang et al. 2018, eq. 1) over the layers of any network: at each place, the weighted squared
    distance of the layers' unit vectors, averaged over places and summed over layers."""

    def forward(self, x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
        """Distances [B] of images in [-1, 1] with 1 or 3 channels."""
        layers = zip(self.layers(_colour(x_BCHW)), self.layers(_colour(y_BCHW)), self.weights(), strict=True)
        total_B = x_BCHW.new_zeros(len(x_BCHW), dtype=torch.float32)
        for one, two, weight in layers:
            apart = (_unit(one) - _unit(two)).square() * weight
            total_B = total_B + apart.sum(1).mean(dim=(1, 2))
        return total_B

    def train(self, mode: bool = True) -> Perceptual:
        """Always in eval mode: its statistics are those of the packaged weights."""
        return super().train(False)

    @abstractmethod
    def layers(self, x_BCHW: Tensor) -> list[Tensor]:
        """Features [B, C, h, w] of colour images in [-1, 1], layer by layer."""

    @abstractmethod
    def weights(self) -> list[Tensor | float]:
        """The weights of each layer's channels, [C, 1, 1], or one for all."""


class PerceptualConfig(Component, ABC):
    """Settings of a distance, which they build."""

    @abstractmethod
    def frozen(self) -> Frozen:
        """Its network, with the place of its weights."""

    def problems(self, data: DataSpec) -> list[str]:
        """Reasons why it cannot judge such images here, one line each, with the fix."""
        if data.channels in (1, 3):
            return []
        judged = f"{self.kind} judges images of 1 or 3 channels"
        return [f"model.perceptual: {judged}, this data has {data.channels}; leave it out"]


def _colour(x_BCHW: Tensor) -> Tensor:
    return x_BCHW.expand(-1, 3, -1, -1)


def _unit(x_BCHW: Tensor) -> Tensor:
    x_BCHW = x_BCHW.float()
    return x_BCHW / torch.sqrt(x_BCHW.square().sum(1, keepdim=True) + 1e-8)


def at_least(x_BCHW: Tensor, side: int) -> Tensor:
    """The images, enlarged where their shorter side is below `side` pixels."""
    least = min(x_BCHW.shape[2:])
    return x_BCHW if least >= side else F.interpolate(x_BCHW, scale_factor=side / least, mode="bilinear")


PERCEPTUALS: Components[PerceptualConfig] = Components(
    "sfumato.families.vae.perceptual", PerceptualConfig, default="efficientnet"
)

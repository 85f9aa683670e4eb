"""The distributions of pixels given a latent, and the conversion of an image's nats to bits per dimension.

A file here is a distribution: its configuration, a `LikelihoodConfig`, and the module that it builds.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from torch import Tensor, nn

from sfumato.core.components import Component, Components
from sfumato.core.family import EIGHT_BIT
from sfumato.core.rng import Rng


class Likelihood(nn.Module, ABC):
    """p(x | decoder output), factorised over pixels and channels."""

    outputs: int
    """The number of channels that the decoder must return."""
    uniforms: int
    """The number of uniform numbers that `draw` takes for a pixel: the channels, if not said otherwise."""

    def log_prob(self, x_BCHW: Tensor, output_BOHW: Tensor) -> Tensor:
        """Nats of each image, [B], for targets that `LikelihoodConfig.target` gave."""
        return self.each(x_BCHW, output_BOHW).flatten(1).sum(dim=1)

    @abstractmethod
    def each(self, x_BCHW: Tensor, output_BOHW: Tensor) -> Tensor:
        """Nats of each value, [B, C, H, W], or of each pixel, [B, H, W]."""

    @abstractmethod
    def mean(self, output_BOHW: Tensor) -> Tensor:
        """The expected image, [B, C, H, W] in [-1, 1]."""

    @abstractmethod
    def draw(self, output_BOHW: Tensor, uniform_BUHW: Tensor) -> Tensor:
        """An image [B, C, H, W] in [-1, 1] for each set of uniform numbers."""


class LikelihoodConfig(Component, ABC):
    """Settings of a distribution, which they build."""

    @abstractmethod
    def build(self, channels: int) -> Likelihood:
        """The distribution of images of so many channels."""

    def target(self, image_BCHW: Tensor, rng: Rng) -> Tensor:
        """The target of the likelihood, [B, C, H, W] in [-1, 1]: the image, or a coarser one."""
        return image_BCHW

    @property
    def target_is(self) -> str:
        """A description of `target`."""
        return EIGHT_BIT


LIKELIHOODS: Components[LikelihoodConfig] = Components(
    "sfumato.families.vae.likelihoods", LikelihoodConfig, default="logistic"
)


def bits_per_dim(nats_B: Tensor, dims: int) -> Tensor:
    """Nats of an image converted to bits per dimension, [B]."""
    return nats_B / (dims * math.log(2))

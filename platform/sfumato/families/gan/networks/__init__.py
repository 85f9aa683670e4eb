"""The pairs of networks, and their interface to the losses.

generator       latent [B, D], class [B]  ->  image [B, C, H, W] in [-1, 1]
discriminator   groups of images, their classes  ->  scores [B] of each group, any real number

A file here is a pair: its configuration, a `NetworkConfig`, and the generator and discriminator that it
builds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.core.components import Component, Components


class GeneratorNet(nn.Module, ABC):
    """Images from latents. Without classes, labels are zero."""

    @abstractmethod
    def forward(self, z_BD: Tensor, label_B: Tensor) -> Tensor: ...


class DiscriminatorNet(nn.Module, ABC):
    """Scores of images, high for real ones.

    A loss calls it once with all that it wants scored, since a network that is spread over ranks should
    not be called twice in one pass. With `mixes_rows` (batch normalisation) every group is scored by its
    own statistics, so that real and generated images do not tell one another apart.
    """

    mixes_rows = False

    def forward(self, groups: Sequence[Tensor], labels: Sequence[Tensor]) -> list[Tensor]:
        """One tensor of scores [B] for each group of images [B, C, H, W] with labels [B]."""
        # In one batch, a gradient for one group would cost as much as one for all of them.
        if self.mixes_rows or len({group.requires_grad for group in groups}) > 1:
            return [self.score(x_BCHW, label_B) for x_BCHW, label_B in zip(groups, labels, strict=True)]
        scores = self.score(torch.cat(list(groups)), torch.cat(list(labels)))
        return list(torch.split(scores, [len(group) for group in groups]))

    @abstractmethod
    def score(self, x_BCHW: Tensor, label_B: Tensor) -> Tensor:
        """Scores [B] float32."""


class NetworkConfig(Component, ABC):
    """Kind and size of both networks, which it builds."""

    @abstractmethod
    def build_generator(self, data: DataSpec, *, latent: int, classes: int) -> GeneratorNet:
        """A generator with weights from torch's global generator; `classes` 0 makes it unconditional."""

    @abstractmethod
    def build_discriminator(self, data: DataSpec, *, classes: int, bias: bool) -> DiscriminatorNet:
        """A discriminator; `bias` says whether its score has one."""

    @property
    def norms(self) -> tuple[str, str]:
        """How generator and discriminator normalise.

        `batch` lets the rows of a micro-batch influence one another; `spectral` bounds a discriminator.
        """
        return "none", "none"

    def problems(self, data: DataSpec) -> list[str]:
        """Why they cannot be built for such images, one line each."""
        return []


NETWORKS: Components[NetworkConfig] = Components(
    "sfumato.families.gan.networks", NetworkConfig, default="dcgan"
)


def side_problems(channels: Sequence[int], down: Sequence[int], data: DataSpec) -> list[str]:
    """Sides that a generator with a doubling for each of `channels`, or a discriminator with a halving for
    each of `down`, does not fit; one line each.
    """
    found = []
    doublings = len(channels)
    for name, side in (("height", data.height), ("width", data.width)):
        if side % (1 << doublings):
            most = (side & -side).bit_length() - 1
            near = max(1, round(side / (1 << doublings))) << doublings
            fix = f"at most {most} entries" if most else f"a {name} of {near}"
            found.append(
                f"model.network.channels: {doublings} entries double the side {doublings} times, which "
                f"cannot give an image {name} of {side}; use {fix}"
            )
    halvings = len(down)
    side = min(data.height, data.width)
    if side >> halvings == 0:
        found.append(
            f"model.network.discriminator_channels: {halvings} entries halve the image {halvings} times, but "
            f"its side is {side}; use at most {side.bit_length() - 1}"
        )
    return found

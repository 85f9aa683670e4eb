"""What the losses know of the networks: the two base classes, and which configuration means which.

generator       latent [B, D], class [B]  ->  image [B, C, H, W] in [-1, 1]
discriminator   groups of images, their classes  ->  scores [B] of each group, any real number
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.families.gan.config import DcganConfig, ResnetConfig


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
        # A gradient for one group alone would cost as much as one for all of them if they were one batch.
        if self.mixes_rows or len({group.requires_grad for group in groups}) > 1:
            return [self.score(x_BCHW, label_B) for x_BCHW, label_B in zip(groups, labels, strict=True)]
        scores = self.score(torch.cat(list(groups)), torch.cat(list(labels)))
        return list(torch.split(scores, [len(group) for group in groups]))

    @abstractmethod
    def score(self, x_BCHW: Tensor, label_B: Tensor) -> Tensor:
        """Scores [B] float32."""


def build_generator(
    config: DcganConfig | ResnetConfig, data: DataSpec, *, latent: int, classes: int
) -> GeneratorNet:
    """A generator with weights from torch's global generator; `classes` 0 makes it unconditional."""
    if isinstance(config, DcganConfig):
        from sfumato.families.gan.dcgan import DcganGenerator

        return DcganGenerator(config, data, latent=latent, classes=classes)
    from sfumato.families.gan.resnet import ResnetGenerator

    return ResnetGenerator(config, data, latent=latent, classes=classes)


def build_discriminator(
    config: DcganConfig | ResnetConfig, data: DataSpec, *, classes: int, bias: bool
) -> DiscriminatorNet:
    """A discriminator; `bias` says whether its score has one."""
    if isinstance(config, DcganConfig):
        from sfumato.families.gan.dcgan import DcganDiscriminator

        return DcganDiscriminator(config, data, classes=classes, bias=bias)
    from sfumato.families.gan.resnet import ResnetDiscriminator

    return ResnetDiscriminator(config, data, classes=classes, bias=bias)

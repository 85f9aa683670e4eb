"""Progressive growing (Karras, Aila, Laine, Lehtinen 2018, table 2, fig. 2).

Training begins with images of 4x4 pixels. Each doubling of the side fades in over `stage_images`, and then
stays as long: `grown`, the number of doublings so far, is a function of the images seen, whose fraction is
the paper's alpha. All images have the full side, coarser ones by repeating pixels. A network has all layers
from the start; those above the present side get images of zeros and a factor of zero, so that every parameter
has a gradient.

Layers have equalised learning rates; the generator normalises each pixel; the discriminator sees the standard
deviation over a group of images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng
from sfumato.families.gan.networks import DiscriminatorNet, GeneratorNet, GroupedConfig
from sfumato.families.gan.networks.progan.growing import BASE, doubled, halved, stage
from sfumato.families.gan.sampling import SamplingConfig


class ProGanConfig(GroupedConfig):
    """Networks that grow with the images seen (Karras et al. 2018)."""

    kind: Literal["progan"] = Field("progan", description="Selects progressive growing.")
    channel_base: int = Field(8_192, ge=1, description="Channels at a side, times the side over two.")
    channel_max: int = Field(512, ge=1, description="Most channels of any layer.")
    stage_images: int = Field(
        800_000, ge=1, description="Images over which a doubling fades in, and then stays before the next."
    )

    def widths(self, data: DataSpec) -> list[int]:
        """Channels of each side, 4 first."""
        levels = int(math.log2(data.height // BASE)) + 1
        return [max(1, min(2 * self.channel_base // (BASE << at), self.channel_max)) for at in range(levels)]

    def grown(self, progress: Progress) -> float:
        """Doublings so far: whole while a side stays, in between while the next fades in."""
        stages, part = divmod(progress.images / self.stage_images, 1)
        return stages // 2 + (part if stages % 2 else 0.0)

    def build_generator(self, data: DataSpec, *, latent: int, classes: int) -> GeneratorNet:
        """See `generator.py`."""
        from sfumato.families.gan.networks.progan.generator import ProGanGenerator

        return ProGanGenerator(data.channels, self.widths(data), latent=latent, classes=classes)

    def build_discriminator(self, data: DataSpec, *, classes: int, bias: bool) -> DiscriminatorNet:
        """See `discriminator.py`."""
        from sfumato.families.gan.networks.progan.discriminator import ProGanDiscriminator

        return ProGanDiscriminator(
            data.channels, self.widths(data), classes=classes, bias=bias, group=self.minibatch_group
        )

    def generator_inputs(
        self, data: DataSpec, latent: int, progress: Progress, rng: Rng
    ) -> Mapping[str, Any]:
        """How far it has grown."""
        return {"grown": self.grown(progress)}

    def sampling_inputs(
        self, generator: nn.Module, latent: int, classes: int, progress: Progress, options: SamplingConfig
    ) -> Mapping[str, Any]:
        """How far it has grown."""
        return {"grown": self.grown(progress)}

    def discriminator_inputs(self, progress: Progress) -> Mapping[str, Any]:
        """How far it has grown."""
        return {"grown": self.grown(progress)}

    def as_seen(self, real_BCHW: Tensor, progress: Progress) -> Tensor:
        """At the present side, blended with the one before while it fades in."""
        levels = int(math.log2(real_BCHW.shape[2] // BASE))
        level, alpha = stage(self.grown(progress), levels)
        image_BCHW = halved(real_BCHW, levels - level)
        if level and alpha < 1:
            image_BCHW = torch.lerp(doubled(halved(image_BCHW, 1), 1), image_BCHW, alpha)
        return doubled(image_BCHW, levels - level)

    @classmethod
    def tiny(cls) -> Self:
        """A doubling that fades in over the images of a test."""
        return cls(channel_base=16, channel_max=4, stage_images=48, minibatch_group=2)

    def problems(self, data: DataSpec) -> list[str]:
        """Sides that doubling 4 does not give."""
        sides = (data.height, data.width)
        if sides[0] == sides[1] and sides[0] >= 2 * BASE and sides[0] & (sides[0] - 1) == 0:
            return []
        near = max(8, 1 << round(max(sides) - 1).bit_length())
        problem = (
            f"model.network.kind: {self.kind} grows square images whose side is a power of two of at least "
            f"{2 * BASE}, and the data has {data.height}x{data.width}; pack it with a side of {near}, or use "
            "network.kind=r3gan or resnet"
        )
        return [problem]


COMPONENT = ProGanConfig

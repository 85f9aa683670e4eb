"""What networks with styles share: StyleGAN, StyleGAN2 and StyleGAN3.

Training draws noise for every pixel of every layer that takes it, and mixes the styles of two latents.
Sampling uses noise that is fixed for good, so that an image is a function of its latent and of
`model.sampling`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng, seeded
from sfumato.core.seeds import derive
from sfumato.families.gan.networks import DiscriminatorNet, GroupedConfig
from sfumato.families.gan.sampling import SamplingConfig, class_of
from sfumato.families.gan.styles.style_directions import directions

BASE = 4
"""The side of the first map."""
CENTRE_ROWS = 1024
"""Latents whose mean style is the centre of truncation."""


class StyledConfig(GroupedConfig):
    """Sizes of both networks."""

    styles: ClassVar[bool] = True
    noisy: ClassVar[bool] = True
    channel_base: int = Field(
        16_384, ge=1, description="Channels at a side, times the side; 32,768 for the largest networks."
    )
    channel_max: int = Field(512, ge=1, description="Most channels of any layer.")
    style: int = Field(512, ge=1, description="Numbers of a style, w.")
    mapping_layers: int = Field(8, ge=1, description="Layers from the latent to the style.")
    mapping_rate: float = Field(
        0.01, gt=0, le=1, description="Learning rate of both mappings, relative to the other layers."
    )
    discriminator_mapping_layers: int = Field(
        8,
        ge=1,
        description="Layers from a class to its direction in the discriminator; the first steps tell classes "
        "apart better with fewer.",
    )
    mixing: float = Field(
        0.9, ge=0, le=1, description="Share of images whose later layers have the style of another latent."
    )
    discriminator: Literal["residual", "plain"] = Field(
        "residual", description="Blocks of the discriminator: with a shortcut, or without."
    )

    @property
    def embeds_classes(self) -> bool:
        """Both mappings take their numbers."""
        return False

    def sides(self, data: DataSpec) -> tuple[int, ...]:
        """4, 8, ... up to the image's."""
        return tuple(BASE << doublings for doublings in range((data.height // BASE).bit_length()))

    def channels(self, side: int) -> int:
        """Of the layers at this side."""
        return max(1, min(self.channel_base // side, self.channel_max))

    def style_layers(self, data: DataSpec) -> int:
        """The last style is that of the image's colours."""
        return len(self.layers(data)) + 1

    @abstractmethod
    def layers(self, data: DataSpec) -> tuple[int, ...]:
        """The sides of the generator's styled layers, first to last; each takes a style and noise."""

    def build_discriminator(self, data: DataSpec, *, classes: int, bias: bool) -> DiscriminatorNet:
        """See `discriminator.py`."""
        from sfumato.families.gan.networks.stylegan2.discriminator import StyleGan2Discriminator

        channels = {side: self.channels(side) for side in self.sides(data)}
        return StyleGan2Discriminator(
            data.channels,
            channels,
            classes=classes,
            style=self.channels(BASE),
            depth=self.discriminator_mapping_layers,
            rate=self.mapping_rate,
            bias=bias,
            residual=self.discriminator == "residual",
            group=self.minibatch_group,
        )

    def generator_inputs(
        self, data: DataSpec, latent: int, progress: Progress, rng: Rng
    ) -> Mapping[str, Any]:
        """Noise for every layer, a second latent, and from which layer on its style counts."""
        layers = self.layers(data)
        noise = [rng.normal(1, side, side) for side in layers]
        return {"noise": noise, **self.mixed(self.style_layers(data), latent, rng)}

    def mixed(self, styles: int, latent: int, rng: Rng) -> dict[str, Any]:
        """Of so many styles: a second latent, and from which one on it counts."""
        if not self.mixing:
            return {}
        crossed_B = 1 + rng.integers(styles - 1)
        mixes_B = rng.uniform() < self.mixing
        return {"second": rng.normal(latent), "crossing": torch.where(mixes_B, crossed_B, styles)}

    def sampling_inputs(
        self, generator: nn.Module, latent: int, classes: int, progress: Progress, options: SamplingConfig
    ) -> Mapping[str, Any]:
        """Where truncation pulls styles to, and how far; other noise than the usual."""
        moved = {**directions(generator, options), **_noise(generator, options)}
        if options.psi is None:
            return moved
        device = next(generator.parameters()).device
        rng = SampleRng(derive("gan", "mean style"), range(CENTRE_ROWS))
        label_B = torch.tensor([class_of(row, classes, CENTRE_ROWS) for row in range(CENTRE_ROWS)])
        styles_BD: Tensor = generator(rng.normal(latent).to(device), label_B.to(device), only_styles=True)
        return {**moved, "psi": options.psi, "centre": styles_BD.mean(0)}

    @classmethod
    def tiny(cls) -> Self:
        """Four channels, two layers of mapping."""
        return cls(
            channel_base=32,
            channel_max=4,
            style=4,
            mapping_layers=2,
            mapping_rate=0.1,
            minibatch_group=2,
        )

    def problems(self, data: DataSpec) -> list[str]:
        """Sides that doubling 4 does not give."""
        sides = (data.height, data.width)
        if sides[0] == sides[1] and sides[0] >= 2 * BASE and sides[0] & (sides[0] - 1) == 0:
            return []
        near = max(8, 1 << round(max(sides) - 1).bit_length())
        problem = (
            f"model.network.kind: {self.kind} makes square images whose side is a power of two of at least "
            f"{2 * BASE}, and the data has {data.height}x{data.width}; pack it with a side of {near}, or use "
            "network.kind=r3gan or resnet"
        )
        return [problem]


def _noise(generator: nn.Module, options: SamplingConfig) -> dict[str, Any]:
    """The noise of every layer [1, side, side], zero where the options leave it out; empty for the usual."""
    if options.noise == "all" and not options.noise_seed:
        return {}
    usual = [buffer for name, buffer in generator.named_buffers() if name.rpartition(".")[2] == "fixed"]
    sides = sorted({each.shape[-1] for each in usual})
    coarse, found = sides[: len(sides) // 2], []
    for at, each in enumerate(usual):
        if options.noise_seed:
            with seeded("noise of sampling", options.noise_seed, at):
                each = torch.randn(each.shape).to(each.device)
        half = "coarse" if each.shape[-1] in coarse else "fine"
        found.append(each if options.noise in ("all", half) else torch.zeros_like(each))
    return {"noise": found}

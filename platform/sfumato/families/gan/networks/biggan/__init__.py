"""BigGAN (Brock, Donahue, Simonyan 2019, app. B, fig. 15).

- The latent is cut into pieces, one for the first map and one for each block (skip-z).
- One embedding of the class serves all layers; with the block's piece of the latent, linear maps of it give
  gain and bias of batch normalisation.
- Self-attention at one side; spectral norm in both networks.
- Orthogonal regularisation of the generator, beta |W W' * (1 - I)|^2 summed over its layers (sec. 3.1, eq.
  3): each block computes its own part, where its weights are whole.

Truncation of latents is `sampling.truncation`. Without classes, the latent's pieces alone give gain and bias.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field

from sfumato.core.batch import DataSpec
from sfumato.families.gan.networks import DiscriminatorNet, GeneratorNet, NetworkConfig, side_problems

_Width = Annotated[int, Field(gt=0)]


class BigGanConfig(NetworkConfig):
    """Residual blocks that latent and class steer everywhere (Brock et al. 2019)."""

    judges: ClassVar[bool] = True
    kind: Literal["biggan"] = Field("biggan", description="Selects BigGAN.")
    channels: tuple[_Width, ...] = Field(
        (256, 256, 256),
        min_length=1,
        description="Channels of the generator's blocks, lowest resolution first; each doubles the side. The "
        "first map has those of the first block.",
    )
    discriminator_channels: tuple[_Width, ...] | None = Field(
        None,
        min_length=1,
        description="Channels of the discriminator's blocks from the image down; each halves the side. Null "
        "mirrors the generator.",
    )
    flat_blocks: int = Field(1, ge=0, description="Further blocks of the discriminator at its last side.")
    attention: int | None = Field(
        None, ge=2, description="The side at which both networks attend to the whole map; null: none."
    )
    class_channels: int = Field(128, ge=1, description="Numbers that describe a class to the generator.")
    orthogonal: float = Field(
        0.0, ge=0, description="beta of orthogonal regularisation; 1e-4 in the paper, 0 leaves it out."
    )

    @property
    def norms(self) -> tuple[str, str]:
        """Batch and spectral."""
        return "batch", "spectral"

    @property
    def penalised(self) -> float:
        """By orthogonal regularisation."""
        return self.orthogonal

    @property
    def down(self) -> tuple[int, ...]:
        """Channels of the discriminator from the image down."""
        return self.discriminator_channels or self.channels[::-1]

    def build_generator(self, data: DataSpec, *, latent: int, classes: int) -> GeneratorNet:
        """See `generator.py`."""
        from sfumato.families.gan.networks.biggan.generator import BigGanGenerator

        return BigGanGenerator(
            self.channels,
            data,
            latent=latent,
            classes=classes,
            class_channels=self.class_channels,
            attention=self.attention,
        )

    def build_discriminator(self, data: DataSpec, *, classes: int, bias: bool) -> DiscriminatorNet:
        """See `discriminator.py`."""
        from sfumato.families.gan.networks.biggan.discriminator import BigGanDiscriminator

        return BigGanDiscriminator(
            self.down,
            data,
            flat_blocks=self.flat_blocks,
            classes=classes,
            bias=bias,
            attention=self.attention,
        )

    @classmethod
    def tiny(cls) -> Self:
        """One doubling of the side, with attention."""
        return cls(channels=(8,), attention=8, class_channels=4, orthogonal=1e-2, flat_blocks=0)

    def problems(self, data: DataSpec) -> list[str]:
        """Sides that its channels do not give."""
        found = side_problems(self.channels, self.down, data)
        doubled = [data.height >> down for down in range(len(self.channels))]
        if self.attention is not None and self.attention not in doubled and not found:
            found.append(
                f"model.network.attention: no block of the generator gives a map of side {self.attention}; "
                f"use {', '.join(map(str, doubled))}"
            )
        return found


COMPONENT = BigGanConfig

"""StyleGAN2 (Karras, Laine, Aittala, Hellsten, Lehtinen, Aila 2020), config F.

    z -> mapping -> w -> one style per layer -> modulated convolutions -> image

- `generator.py`: mapping, modulation and demodulation, noise, skip connections of images, style mixing,
  truncation in W.
- `discriminator.py`: residual or plain blocks, minibatch standard deviation, projection of the class.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sfumato.core.batch import DataSpec
from sfumato.families.gan.networks import GeneratorNet
from sfumato.families.gan.styles.styled import BASE, StyledConfig


class StyleGan2Config(StyledConfig):
    """Styles that modulate convolutions (Karras et al. 2020)."""

    kind: Literal["stylegan2"] = Field("stylegan2", description="Selects StyleGAN2.")

    def layers(self, data: DataSpec) -> tuple[int, ...]:
        """The sides of the generator's convolutions, first to last; each takes a style and noise."""
        return tuple(side for side in self.sides(data) for _ in range(1 if side == BASE else 2))

    def build_generator(self, data: DataSpec, *, latent: int, classes: int) -> GeneratorNet:
        """See `generator.py`."""
        from sfumato.families.gan.networks.stylegan2.generator import StyleGan2Generator

        channels = {side: self.channels(side) for side in self.sides(data)}
        return StyleGan2Generator(
            data.channels,
            channels,
            latent=latent,
            style=self.style,
            classes=classes,
            depth=self.mapping_layers,
            rate=self.mapping_rate,
        )


COMPONENT = StyleGan2Config

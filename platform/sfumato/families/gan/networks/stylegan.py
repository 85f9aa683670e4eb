"""StyleGAN (Karras, Laine, Aila 2019), without growing.

    x' = (1 + y_s) (x - mean(x)) / std(x) + y_b          eq. 1, for each image and channel; y = A w

Every layer is a convolution (the first one learned maps), noise with a strength for each channel, a bias, a
leaky ReLU, and this normalisation by a style. The discriminator is StyleGAN2's, plain as that of ProGAN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.core.batch import DataSpec
from sfumato.core.rng import seeded
from sfumato.families.gan.layers.equalised import EPS, EqualConv2d, EqualLinear, activated
from sfumato.families.gan.networks import GeneratorNet
from sfumato.families.gan.styles.styled import StyledConfig
from sfumato.families.gan.styles.styled_generator import MappingNetwork, StyledGenerator
from sfumato.layers.resampling import Blur


class StyleGanConfig(StyledConfig):
    """Styles that normalise every layer anew (Karras et al. 2019)."""

    kind: Literal["stylegan"] = Field("stylegan", description="Selects StyleGAN.")
    discriminator: Literal["residual", "plain"] = Field(
        "plain", description="Blocks of the discriminator: with a shortcut, or without as in the paper."
    )

    def layers(self, data: DataSpec) -> tuple[int, ...]:
        """Two of every side."""
        return tuple(side for side in self.sides(data) for _ in range(2))

    def build_generator(self, data: DataSpec, *, latent: int, classes: int) -> GeneratorNet:
        """See the top of the file."""
        channels = {side: self.channels(side) for side in self.sides(data)}
        mapping = MappingNetwork(latent, self.style, classes, self.mapping_layers, self.mapping_rate)
        return StyleGanGenerator(data.channels, channels, mapping, self.style)


def instance_norm(x_BCHW: Tensor) -> Tensor:
    """Every channel of every image with mean 0 and variance 1."""
    x_BCHW = x_BCHW.float()
    x_BCHW = x_BCHW - x_BCHW.mean((2, 3), keepdim=True)
    return x_BCHW * (x_BCHW.square().mean((2, 3), keepdim=True) + EPS).rsqrt()


class AdaIn(nn.Module):
    """Eq. 1."""

    def __init__(self, channels: int, style: int) -> None:
        super().__init__()
        self.affine = EqualLinear(style, 2 * channels)

    def forward(self, x_BCHW: Tensor, w_BS: Tensor) -> Tensor:
        scale_BC, shift_BC = self.affine(w_BS).float().chunk(2, 1)
        out_BCHW: Tensor = instance_norm(x_BCHW) * (1 + scale_BC[..., None, None]) + shift_BC[..., None, None]
        return out_BCHW.to(x_BCHW.dtype)


class StyledLayer(nn.Module):
    """Noise, bias, leaky ReLU and style, after a convolution or, with `inputs` 0, learned maps."""

    fixed: Tensor

    def __init__(self, inputs: int, outputs: int, style: int, side: int, *, up: bool) -> None:
        super().__init__()
        self.conv = EqualConv2d(inputs, outputs, 3, bias=False) if inputs else None
        self.start = None if inputs else nn.Parameter(torch.ones(outputs, side, side))
        self.blur = Blur(padding=1, taps=(1, 2, 1)) if up else None
        self.strength, self.bias = (nn.Parameter(torch.zeros(outputs)) for _ in range(2))
        self.style = AdaIn(outputs, style)
        with seeded("noise of sampling", side, inputs, outputs):
            self.register_buffer("fixed", torch.randn(1, side, side), persistent=False)

    def forward(self, x_BCHW: Tensor | None, w_BS: Tensor, noise_B1HW: Tensor | None) -> Tensor:
        if self.conv is None or x_BCHW is None:
            assert self.start is not None, "only the first layer starts from nothing"
            x_BCHW = self.start.expand(len(w_BS), -1, -1, -1)
        elif self.blur is None:
            x_BCHW = self.conv(x_BCHW)
        else:
            x_BCHW = self.blur(self.conv(F.interpolate(x_BCHW, scale_factor=2)))
        assert x_BCHW is not None, "all cases set it"
        noise = self.fixed if noise_B1HW is None else noise_B1HW
        added_BCHW = self.strength[:, None, None] * noise + self.bias[:, None, None]
        out_BCHW: Tensor = self.style(activated(x_BCHW + added_BCHW.to(x_BCHW.dtype)), w_BS)
        return out_BCHW


class StyleGanGenerator(StyledGenerator):
    """See the top of the file."""

    def __init__(
        self, colours: int, channels: Mapping[int, int], mapping: MappingNetwork, style: int
    ) -> None:
        """`channels` are those of each side, lowest first."""
        super().__init__(mapping, 2 * len(channels))
        layers = []
        for side, (before, width) in zip(channels, pairwise((0, *channels.values())), strict=True):
            layers.append(StyledLayer(before, width, style, side, up=before > 0))
            layers.append(StyledLayer(width, width, style, side, up=False))
        self.layers = nn.ModuleList(layers)
        self.colours = EqualConv2d(width, colours, 1)

    def synthesise(self, styles_BLS: Tensor, noise: Sequence[Tensor] | None) -> Tensor:
        """See the base."""
        x_BCHW: Tensor | None = None
        for at, layer in enumerate(self.layers):
            x_BCHW = layer(x_BCHW, styles_BLS[:, at], None if noise is None else noise[at])
        image_BCHW: Tensor = self.colours(x_BCHW)
        return image_BCHW.float()

    def affine_weights(self) -> list[Tensor]:
        """See the base; of every layer's normalisation."""
        return [
            module.affine.weight * module.affine.scale
            for module in self.modules()
            if isinstance(module, AdaIn)
        ]


COMPONENT = StyleGanConfig

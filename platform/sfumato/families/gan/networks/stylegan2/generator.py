"""StyleGAN2's generator (Karras et al. 2020, fig. 2 and 7).

A modulated convolution scales its inputs by the style s, and its outputs by what makes their expected
variance 1:

    w'_ijk = s_i w_ijk,   w''_ijk = w'_ijk / sqrt(sum_ik w'_ijk^2 + eps)                      eq. 1, 3

Scaling activations instead of weights computes the same without a convolution per image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.core.rng import seeded
from sfumato.families.gan.layers.equalised import EPS, EqualLinear, activated
from sfumato.families.gan.styles.styled_generator import MappingNetwork, StyledGenerator
from sfumato.layers.resampling import Blur, Up


class ModulatedConv2d(nn.Module):
    """A convolution that a style modulates; with `up` it doubles the side, else `padding` None keeps it."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        style: int,
        *,
        demodulate: bool = True,
        up: bool = False,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.affine = EqualLinear(style, inputs, start=1.0)
        self.scale = 1 / math.sqrt(inputs * kernel**2)
        self.demodulate, self.padding = demodulate, kernel // 2 if padding is None else padding
        self.blur = Blur(padding=1, gain=4.0) if up else None

    def forward(self, x_BCHW: Tensor, w_BS: Tensor) -> Tensor:
        scales_BC: Tensor = self.affine(w_BS)
        weight = self.weight * self.scale
        x_BCHW = x_BCHW * scales_BC[:, :, None, None].to(x_BCHW.dtype)
        out_BOHW: Tensor
        if self.blur is None:
            out_BOHW = F.conv2d(x_BCHW, weight, padding=self.padding)
        else:
            out_BOHW = self.blur(F.conv_transpose2d(x_BCHW, weight.transpose(0, 1).flip(2, 3), stride=2))
        if not self.demodulate:
            return out_BOHW
        squares_CO = weight.float().square().sum((2, 3)).T
        deviation_BO = (scales_BC.float().square() @ squares_CO + EPS).rsqrt()
        return out_BOHW * deviation_BO[:, :, None, None].to(out_BOHW.dtype)


class StyledLayer(nn.Module):
    """A modulated 3x3 convolution, noise, a bias, a leaky ReLU."""

    fixed: Tensor

    def __init__(self, inputs: int, outputs: int, style: int, side: int, *, up: bool) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(inputs, outputs, 3, style, up=up)
        self.strength = nn.Parameter(torch.zeros(1))
        self.bias = nn.Parameter(torch.zeros(outputs))
        with seeded("noise of sampling", side, inputs, outputs):
            self.register_buffer("fixed", torch.randn(1, side, side), persistent=False)

    def forward(self, x_BCHW: Tensor, w_BS: Tensor, noise_B1HW: Tensor | None) -> Tensor:
        noise = self.fixed if noise_B1HW is None else noise_B1HW
        x_BCHW = self.conv(x_BCHW, w_BS) + (self.strength * noise).to(x_BCHW.dtype)
        return activated(x_BCHW + self.bias[:, None, None].to(x_BCHW.dtype))


class SynthesisBlock(nn.Module):
    """The layers of one side, and their part of the image; the first block starts from learned maps."""

    def __init__(self, inputs: int, outputs: int, style: int, side: int, colours: int) -> None:
        super().__init__()
        self.start = None if inputs else nn.Parameter(torch.randn(outputs, side, side))
        sizes = [(inputs, outputs), (outputs, outputs)] if inputs else [(outputs, outputs)]
        self.layers = nn.ModuleList(
            StyledLayer(a, b, style, side, up=bool(inputs) and at == 0) for at, (a, b) in enumerate(sizes)
        )
        self.colours = ModulatedConv2d(outputs, colours, 1, style, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(colours))
        self.up = Up() if inputs else None

    def forward(
        self,
        x_BCHW: Tensor | None,
        image_BCHW: Tensor | None,
        styles_BLS: Tensor,
        noise: Sequence[Tensor | None],
    ) -> tuple[Tensor, Tensor]:
        """`styles_BLS` holds one style for each layer, and one for the colours."""
        if self.start is not None:
            x_BCHW = self.start.expand(len(styles_BLS), -1, -1, -1)
        assert x_BCHW is not None, "only the first block starts from nothing"
        for at, layer in enumerate(self.layers):
            x_BCHW = layer(x_BCHW, styles_BLS[:, at], noise[at])
        own_BCHW = self.colours(x_BCHW, styles_BLS[:, len(self.layers)]) + self.bias[:, None, None]
        assert x_BCHW is not None, "a layer returns a map"
        if image_BCHW is None or self.up is None:
            return x_BCHW, own_BCHW.float()
        return x_BCHW, self.up(image_BCHW) + own_BCHW.float()


class StyleGan2Generator(StyledGenerator):
    """See the top of the file."""

    def __init__(
        self,
        colours: int,
        channels: Mapping[int, int],
        *,
        latent: int,
        style: int,
        classes: int,
        depth: int,
        rate: float,
    ) -> None:
        """`channels` are those of each side, lowest first."""
        per_block = [1, *[2] * (len(channels) - 1)]
        super().__init__(MappingNetwork(latent, style, classes, depth, rate), sum(per_block) + 1)
        sizes = pairwise((0, *channels.values()))
        self.blocks = nn.ModuleList(
            SynthesisBlock(a, b, style, side, colours) for side, (a, b) in zip(channels, sizes, strict=True)
        )
        self.per_block = per_block

    def synthesise(self, styles_BLS: Tensor, noise: Sequence[Tensor] | None) -> Tensor:
        """See the base."""
        x_BCHW: Tensor | None = None
        image_BCHW: Tensor | None = None
        at = 0
        for block, layers in zip(self.blocks, self.per_block, strict=True):
            own = [None] * layers if noise is None else noise[at : at + layers]
            # The style of an image's colours is that of the next block's first layer.
            x_BCHW, image_BCHW = block(x_BCHW, image_BCHW, styles_BLS[:, at : at + layers + 1], own)
            at += layers
        assert image_BCHW is not None, "there is at least one block"
        return image_BCHW

    def affine_weights(self) -> list[Tensor]:
        """See the base; of every modulated convolution."""
        return [
            module.affine.weight * module.affine.scale
            for module in self.modules()
            if isinstance(module, ModulatedConv2d)
        ]

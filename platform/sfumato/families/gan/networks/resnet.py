"""Residual generator and discriminator, as in SNGAN (Miyato et al. 2018, app. B.4, fig. 9).

Blocks are pre-activated; the generator's double the side by nearest neighbours, the discriminator's halve
it by averaging, both on the shortcut too.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.core.batch import DataSpec
from sfumato.families.gan.layers.blocks import ClassNorm, ScoreConfig, conv, init_orthogonal, with_planes
from sfumato.families.gan.networks import FeatureDiscriminator, GeneratorNet, NetworkConfig, side_problems

_Width = Annotated[int, Field(gt=0)]


class ResnetConfig(NetworkConfig, ScoreConfig):
    """Residual blocks, as in SNGAN (Miyato et al. 2018, tables 4 and 5)."""

    judges: ClassVar[bool] = True

    kind: Literal["resnet"] = Field("resnet", description="Selects the residual networks.")
    channels: tuple[_Width, ...] = Field(
        (128, 128),
        min_length=1,
        description="Channels of the generator's blocks, lowest resolution first; each doubles the side.",
    )
    discriminator_channels: tuple[_Width, ...] | None = Field(
        None,
        min_length=1,
        description="Channels of the discriminator's blocks from the image down; each halves the side. Null "
        "mirrors the generator.",
    )
    flat_blocks: int = Field(1, ge=0, description="Further blocks of the discriminator at its last side.")
    generator_norm: Literal["batch", "group"] = Field(
        "batch",
        description="Normalisation in the generator: over the rows of a micro-batch, or of each image "
        "alone in up to 8 groups of channels.",
    )
    discriminator_norm: Literal["spectral", "none"] = Field(
        "spectral", description="How the discriminator is normalised."
    )

    @property
    def norms(self) -> tuple[str, str]:
        """As set."""
        return self.generator_norm, self.discriminator_norm

    @property
    def compares_rows(self) -> bool:
        """By minibatch discrimination."""
        return self.minibatch_kernels > 0

    @property
    def classifies(self) -> bool:
        """If the label's score is auxiliary."""
        return self.label_score == "auxiliary"

    @property
    def embeds_classes(self) -> bool:
        """If the label's score is a projection."""
        return self.label_score == "projection"

    @property
    def stages(self) -> tuple[int, ...]:
        """One for every doubling."""
        return self.channels

    @property
    def down(self) -> tuple[int, ...]:
        """Channels of the discriminator from the image down."""
        return self.discriminator_channels or self.channels[::-1]

    def build_generator(self, data: DataSpec, *, latent: int, classes: int) -> ResnetGenerator:
        """See the class."""
        return ResnetGenerator(self, data, latent=latent, classes=classes)

    def build_discriminator(self, data: DataSpec, *, classes: int, bias: bool) -> ResnetDiscriminator:
        """See the class."""
        return ResnetDiscriminator(self, data, classes=classes, bias=bias)

    @classmethod
    def tiny(cls) -> Self:
        """One doubling of the side."""
        return cls(channels=(8,))

    def problems(self, data: DataSpec) -> list[str]:
        """Sides that its channels do not give."""
        return side_problems(self.channels, self.down, data)


class ResnetGenerator(GeneratorNet):
    """A linear map to the first feature map, then a residual block for every doubling."""

    def __init__(self, config: ResnetConfig, data: DataSpec, *, latent: int, classes: int) -> None:
        super().__init__()
        channels, kind = config.channels, config.generator_norm
        self.base = (channels[0], data.height >> len(channels), data.width >> len(channels))
        # Only the image has a bias: everything else is normalised afterwards, along the shortcuts too.
        self.project = nn.Linear(latent, channels[0] * self.base[1] * self.base[2], bias=False)
        self.blocks = nn.ModuleList(
            _UpBlock(inputs, outputs, kind, classes) for inputs, outputs in pairwise((channels[0], *channels))
        )
        self.norm = ClassNorm(kind, channels[-1], classes)
        self.image = nn.Conv2d(channels[-1], data.channels, 3, 1, 1)
        init_orthogonal(self)

    def forward(self, z_BD: Tensor, label_B: Tensor, **inputs: Any) -> Tensor:
        x_BCHW = self.project(z_BD).unflatten(1, self.base)
        for at, block in enumerate(self.blocks):
            x_BCHW = self.attended(at, block(x_BCHW, label_B), inputs)
        return torch.tanh(self.image(F.relu(self.norm(x_BCHW, label_B))).float())


class _UpBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, norm: str, classes: int) -> None:
        super().__init__()
        self.norm1 = ClassNorm(norm, inputs, classes)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = ClassNorm(norm, outputs, classes)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x_BCHW: Tensor, label_B: Tensor) -> Tensor:
        h_BCHW = F.interpolate(F.relu(self.norm1(x_BCHW, label_B)), scale_factor=2)
        h_BCHW = self.conv2(F.relu(self.norm2(self.conv1(h_BCHW), label_B)))
        # A 1x1 convolution and nearest neighbours commute, and it is cheaper before them.
        out_BCHW: Tensor = h_BCHW + F.interpolate(self.shortcut(x_BCHW), scale_factor=2)
        return out_BCHW


class ResnetDiscriminator(FeatureDiscriminator):
    """A residual block for every halving, further ones at the last side, then a sum over pixels."""

    def __init__(self, config: ResnetConfig, data: DataSpec, *, classes: int, bias: bool) -> None:
        super().__init__()
        norm = config.discriminator_norm
        channels = config.down
        self.mixes_rows = config.compares_rows
        self.planes = config.planes(classes)
        widths = (data.channels + self.planes, *channels, *[channels[-1]] * config.flat_blocks)
        self.blocks = nn.ModuleList(
            _DownBlock(inputs, outputs, norm, first=at == 0, halve=at < len(channels))
            for at, (inputs, outputs) in enumerate(pairwise(widths))
        )
        self.output = config.score(norm, channels[-1], classes, bias=bias)
        init_orthogonal(self)

    def features(self, x_BCHW: Tensor, label_B: Tensor, **inputs: Any) -> Tensor:
        """The sum of the last map over pixels."""
        x_BCHW = with_planes(x_BCHW, label_B, self.planes)
        for block in self.blocks:
            x_BCHW = block(x_BCHW)
        return F.relu(x_BCHW).sum((2, 3))


class _DownBlock(nn.Module):
    """The first block sees the image, so it must not cut its input at zero."""

    def __init__(self, inputs: int, outputs: int, norm: str, *, first: bool, halve: bool) -> None:
        super().__init__()
        self.first, self.halve = first, halve
        self.conv1 = conv(norm, inputs, outputs, 3, 1, 1)
        self.conv2 = conv(norm, outputs, outputs, 3, 1, 1)
        self.shortcut = conv(norm, inputs, outputs, 1) if halve or inputs != outputs else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = x_BCHW if self.first else F.relu(x_BCHW)
        h_BCHW = self.conv2(F.relu(self.conv1(h_BCHW)))
        if self.halve:
            h_BCHW, x_BCHW = F.avg_pool2d(h_BCHW, 2), F.avg_pool2d(x_BCHW, 2)
        return h_BCHW + (x_BCHW if self.shortcut is None else self.shortcut(x_BCHW))


COMPONENT = ResnetConfig

"""DCGAN: strided convolutions up and down (Radford, Metz, Chintala 2016, fig. 1).

For sides other than 64 the number of channels given says how often the side is doubled from the first map,
whose side is whatever is left.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.core.batch import DataSpec
from sfumato.families.gan.layers.blocks import LEAK, ClassNorm, ScoreConfig, conv, init_normal, with_planes
from sfumato.families.gan.networks import FeatureDiscriminator, GeneratorNet, NetworkConfig, side_problems

STD = 0.02
KERNEL = 4
_Width = Annotated[int, Field(gt=0)]


class DcganConfig(NetworkConfig, ScoreConfig):
    """Plain stacks of strided convolutions (Radford, Metz, Chintala 2016)."""

    judges: ClassVar[bool] = True

    kind: Literal["dcgan"] = Field("dcgan", description="Selects DCGAN.")
    channels: tuple[_Width, ...] = Field(
        (128, 64),
        min_length=1,
        description="Channels of the generator from its lowest resolution up; each entry doubles the side.",
    )
    discriminator_channels: tuple[_Width, ...] | None = Field(
        None,
        min_length=1,
        description="Channels of the discriminator from the image down; each entry halves the side. Null "
        "mirrors the generator.",
    )
    generator_norm: Literal["batch", "group"] = Field(
        "batch",
        description="Normalisation in the generator: over the rows of a micro-batch, or of each image "
        "alone in up to 8 groups of channels.",
    )
    discriminator_norm: Literal["spectral", "batch", "none"] = Field(
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
    def down(self) -> tuple[int, ...]:
        """Channels of the discriminator from the image down."""
        return self.discriminator_channels or self.channels[::-1]

    def build_generator(self, data: DataSpec, *, latent: int, classes: int) -> DcganGenerator:
        """See the class."""
        return DcganGenerator(self, data, latent=latent, classes=classes)

    def build_discriminator(self, data: DataSpec, *, classes: int, bias: bool) -> DcganDiscriminator:
        """See the class."""
        return DcganDiscriminator(self, data, classes=classes, bias=bias)

    @classmethod
    def tiny(cls) -> Self:
        """One doubling of the side."""
        return cls(channels=(8,))

    def problems(self, data: DataSpec) -> list[str]:
        """Sides that its channels do not give."""
        return side_problems(self.channels, self.down, data)


class DcganGenerator(GeneratorNet):
    """A linear map to the first feature map, then a transposed convolution for every doubling."""

    def __init__(self, config: DcganConfig, data: DataSpec, *, latent: int, classes: int) -> None:
        super().__init__()
        first, kind = config.channels[0], config.generator_norm
        self.base = (first, data.height >> len(config.channels), data.width >> len(config.channels))
        # Biases before a normalisation would do nothing.
        self.project = nn.Linear(latent, first * self.base[1] * self.base[2], bias=False)
        self.first_norm = ClassNorm(kind, first, classes)
        self.layers = nn.ModuleList(
            _Up(inputs, outputs, kind, classes) for inputs, outputs in pairwise(config.channels)
        )
        self.image = nn.ConvTranspose2d(config.channels[-1], data.channels, KERNEL, 2, 1)
        init_normal(self, STD)

    def forward(self, z_BD: Tensor, label_B: Tensor, **inputs: Any) -> Tensor:
        x_BCHW = self.project(z_BD).unflatten(1, self.base)
        x_BCHW = F.relu(self.first_norm(x_BCHW, label_B))
        for layer in self.layers:
            x_BCHW = layer(x_BCHW, label_B)
        return torch.tanh(self.image(x_BCHW).float())


class _Up(nn.Module):
    def __init__(self, inputs: int, outputs: int, norm: str, classes: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(inputs, outputs, KERNEL, 2, 1, bias=False)
        self.norm = ClassNorm(norm, outputs, classes)

    def forward(self, x_BCHW: Tensor, label_B: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x_BCHW), label_B))


class DcganDiscriminator(FeatureDiscriminator):
    """A strided convolution for every halving; the score is computed from the last map, flattened."""

    def __init__(self, config: DcganConfig, data: DataSpec, *, classes: int, bias: bool) -> None:
        super().__init__()
        norm = config.discriminator_norm
        channels = config.down
        self.mixes_rows = norm == "batch" or config.compares_rows
        self.planes = config.planes(classes)
        inputs = (data.channels + self.planes, *channels)
        self.layers = nn.ModuleList(
            # The first layer sees the image unnormalised (Radford et al. 2016, sec. 3).
            _Down(a, b, norm if at or norm != "batch" else "none")
            for at, (a, b) in enumerate(pairwise(inputs))
        )
        pixels = (data.height >> len(channels)) * (data.width >> len(channels))
        init_normal(self, STD)
        self.output = config.score(norm, channels[-1] * pixels, classes, bias=bias)
        if norm != "spectral":  # which divides the scale of these weights out
            init_normal(self.output, STD)

    def features(self, x_BCHW: Tensor, label_B: Tensor, **inputs: Any) -> Tensor:
        """The last map, flattened."""
        x_BCHW = with_planes(x_BCHW, label_B, self.planes)
        for layer in self.layers:
            x_BCHW = layer(x_BCHW)
        return x_BCHW.flatten(1)


class _Down(nn.Module):
    def __init__(self, inputs: int, outputs: int, norm: str) -> None:
        super().__init__()
        self.conv = conv(norm, inputs, outputs, KERNEL, 2, 1)
        self.norm = ClassNorm(norm, outputs, 0) if norm == "batch" else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.conv(x_BCHW)
        if self.norm is not None:
            x_BCHW = self.norm(x_BCHW, x_BCHW.new_zeros(len(x_BCHW), dtype=torch.int64))
        return F.leaky_relu(x_BCHW, LEAK)


COMPONENT = DcganConfig

"""BigGAN (Brock, Donahue, Simonyan 2019, app. B, fig. 15).

- The latent is cut into pieces, one for the first map and one for each block (skip-z).
- One embedding of the class serves all layers; with the block's piece of the latent, linear maps of it give
  gain and
  bias of batch normalisation.
- Self-attention at one side; spectral norm in both networks.
- Orthogonal regularisation of the generator, beta |W W' * (1 - I)|^2 summed over its layers (sec. 3.1, eq.
  3): each
  block computes its own part, where its weights are whole.

Truncation of latents is `sampling.truncation`. Without classes, the latent's pieces alone give gain and bias.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.core.batch import DataSpec
from sfumato.families.gan.attention import SelfAttention
from sfumato.families.gan.blocks import Score, init_orthogonal
from sfumato.families.gan.networks import (
    FeatureDiscriminator,
    Generated,
    GeneratorNet,
    NetworkConfig,
    side_problems,
)
from sfumato.layers.batch_norm import BatchNorm
from sfumato.layers.spectral import Spectral, SpectralConv2d, SpectralLinear

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

    def build_generator(self, data: DataSpec, *, latent: int, classes: int) -> BigGanGenerator:
        """See the class."""
        return BigGanGenerator(self, data, latent=latent, classes=classes)

    def build_discriminator(self, data: DataSpec, *, classes: int, bias: bool) -> BigGanDiscriminator:
        """See the class."""
        return BigGanDiscriminator(self, data, classes=classes, bias=bias)

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
                "use "
                f"{', '.join(map(str, doubled))}"
            )
        return found


class BigGanGenerator(GeneratorNet):
    """A linear map to the first feature map, then a residual block for every doubling."""

    def __init__(self, config: BigGanConfig, data: DataSpec, *, latent: int, classes: int) -> None:
        super().__init__()
        channels, doublings = config.channels, len(config.channels)
        self.base = (channels[0], data.height >> doublings, data.width >> doublings)
        first, *others = _pieces(latent, doublings + 1)
        self.cut = [first, *others]
        self.embedding = nn.Embedding(classes, config.class_channels) if classes else None
        known = config.class_channels if classes else 0
        self.project = SpectralLinear(first, channels[0] * self.base[1] * self.base[2])
        sizes = list(pairwise((channels[0], *channels)))
        self.blocks = nn.ModuleList(
            _UpBlock(a, b, known + piece, attends=data.height >> (doublings - 1 - at) == config.attention)
            for at, ((a, b), piece) in enumerate(zip(sizes, others, strict=True))
        )
        self.norm = BatchNorm(channels[-1])
        self.gain = nn.Parameter(torch.ones(channels[-1]))
        self.bias = nn.Parameter(torch.zeros(channels[-1]))
        self.image = SpectralConv2d(channels[-1], data.channels, 3, 1, 1)
        init_orthogonal(self)
        if self.embedding is not None:
            nn.init.orthogonal_(self.embedding.weight)

    def forward(self, z_BD: Tensor, label_B: Tensor, *, details: bool = False, **inputs: Any) -> Any:
        """With `details`, also the orthogonality penalty of all layers but the class's embedding."""
        first_BD, *others = torch.split(z_BD, self.cut, 1)
        penalty = _unorthogonal([self.project, self.image]) if details else None
        x_BCHW = self.project(first_BD).unflatten(1, self.base)
        known = [] if self.embedding is None else [self.embedding(label_B)]
        for block, piece_BD in zip(self.blocks, others, strict=True):
            x_BCHW, more = block(x_BCHW, torch.cat([*known, piece_BD], 1), penalised=details)
            if penalty is not None:
                penalty = penalty + more
        x_BCHW = self.norm(x_BCHW) * self.gain[:, None, None] + self.bias[:, None, None]
        image_BCHW = torch.tanh(self.image(F.relu(x_BCHW)).float())
        return Generated(image_BCHW, None, penalty) if details else image_BCHW


class _UpBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, known: int, *, attends: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = _SteeredNorm(inputs, known), _SteeredNorm(outputs, known)
        self.conv1 = SpectralConv2d(inputs, outputs, 3, 1, 1)
        self.conv2 = SpectralConv2d(outputs, outputs, 3, 1, 1)
        self.shortcut = SpectralConv2d(inputs, outputs, 1)
        self.attention = SelfAttention(outputs) if attends else None

    def forward(
        self, x_BCHW: Tensor, known_BD: Tensor, *, penalised: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        h_BCHW = F.interpolate(F.relu(self.norm1(x_BCHW, known_BD)), scale_factor=2)
        h_BCHW = self.conv2(F.relu(self.norm2(self.conv1(h_BCHW), known_BD)))
        # A 1x1 convolution and nearest neighbours commute, and it is cheaper before them.
        x_BCHW = h_BCHW + F.interpolate(self.shortcut(x_BCHW), scale_factor=2)
        if self.attention is not None:
            x_BCHW = self.attention(x_BCHW)
        return x_BCHW, _unorthogonal(_layers(self)) if penalised else None


class _SteeredNorm(nn.Module):
    """Batch normalisation with gain 1 + A h and bias B h, where h describes latent and class."""

    def __init__(self, channels: int, known: int) -> None:
        super().__init__()
        self.norm = BatchNorm(channels)
        self.gain = SpectralLinear(known, channels, bias=False)
        self.bias = SpectralLinear(known, channels, bias=False)

    def forward(self, x_BCHW: Tensor, known_BD: Tensor) -> Tensor:
        gain_BC11 = 1 + self.gain(known_BD)[:, :, None, None]
        out_BCHW: Tensor = self.norm(x_BCHW) * gain_BC11 + self.bias(known_BD)[:, :, None, None]
        return out_BCHW


class BigGanDiscriminator(FeatureDiscriminator):
    """A residual block for every halving, further ones at the last side, then a sum over pixels."""

    def __init__(self, config: BigGanConfig, data: DataSpec, *, classes: int, bias: bool) -> None:
        super().__init__()
        channels = config.down
        widths = (data.channels, *channels, *[channels[-1]] * config.flat_blocks)
        self.blocks = nn.ModuleList(
            _DownBlock(
                a,
                b,
                first=at == 0,
                halve=at < len(channels),
                attends=at < len(channels) and data.height >> (at + 1) == config.attention,
            )
            for at, (a, b) in enumerate(pairwise(widths))
        )
        self.output = Score("spectral", channels[-1], classes, bias=bias)
        init_orthogonal(self)

    def features(self, x_BCHW: Tensor, label_B: Tensor, **inputs: Any) -> Tensor:
        """The sum of the last map over pixels."""
        for block in self.blocks:
            x_BCHW = block(x_BCHW)
        return F.relu(x_BCHW).sum((2, 3))


class _DownBlock(nn.Module):
    """The first block sees the image, so it must not cut its input at zero."""

    def __init__(self, inputs: int, outputs: int, *, first: bool, halve: bool, attends: bool) -> None:
        super().__init__()
        self.first, self.halve = first, halve
        self.conv1 = SpectralConv2d(inputs, outputs, 3, 1, 1)
        self.conv2 = SpectralConv2d(outputs, outputs, 3, 1, 1)
        self.shortcut = SpectralConv2d(inputs, outputs, 1) if halve or inputs != outputs else None
        self.attention = SelfAttention(outputs) if attends else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = x_BCHW if self.first else F.relu(x_BCHW)
        h_BCHW = self.conv2(F.relu(self.conv1(h_BCHW)))
        if self.halve:
            h_BCHW, x_BCHW = F.avg_pool2d(h_BCHW, 2), F.avg_pool2d(x_BCHW, 2)
        h_BCHW = h_BCHW + (x_BCHW if self.shortcut is None else self.shortcut(x_BCHW))
        return h_BCHW if self.attention is None else self.attention(h_BCHW)


def _pieces(latent: int, count: int) -> list[int]:
    """Nearly equal parts of the latent; the first is the largest."""
    return [latent // count + (at < latent % count) for at in range(count)]


def _layers(block: nn.Module) -> Iterator[Spectral]:
    return (module for module in block.modules() if isinstance(module, Spectral))


def _unorthogonal(layers: Any) -> Tensor:
    """The sum over layers of |W W' * (1 - I)|^2, W as [out, rest]: 0 where all rows are at right angles."""
    total: Any = 0.0
    for layer in layers:
        matrix = layer.weight.float().flatten(1)
        with torch.autocast(matrix.device.type, enabled=False):
            gram = matrix @ matrix.T
        total = total + (gram - gram.diag().diag()).square().sum()
    penalty: Tensor = total
    return penalty


COMPONENT = BigGanConfig

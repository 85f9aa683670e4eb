"""R3GAN's networks (Huang, Gokaslan, Kuleshov, Tompkin 2024, sec. 4.2, config E).

Both are stacks of residual blocks without normalisation: 1x1 to twice the channels, grouped 3x3, 1x1 back.
The last convolution of a block starts at zero and the others at a scale that depends on the number of blocks,
as in Fixup (Zhang, Dauphin, Ma 2019). Sides change between stages, through a filter. The generator starts
from a basis of learned maps, of which the latent sets the sizes; the discriminator ends with as many learned
sums over pixels. To be used with `loss: relativistic` and R1 and R2 `joined`.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.core.batch import DataSpec
from sfumato.families.gan.layers.blocks import LEAK
from sfumato.families.gan.networks import DiscriminatorNet, GeneratorNet, NetworkConfig, side_problems
from sfumato.layers.resampling import Down, Up

_Width = Annotated[int, Field(gt=0)]
TAPS = (1, 2, 1)
CONVOLUTIONS = 3
"""Of a residual block."""


class R3ganConfig(NetworkConfig):
    """Residual blocks without normalisation (Huang et al. 2024)."""

    kind: Literal["r3gan"] = Field("r3gan", description="Selects R3GAN's networks.")
    channels: tuple[_Width, ...] = Field(
        (768, 768, 768, 768),
        min_length=1,
        description="Channels of the stages, lowest resolution first; each but the first doubles the side. "
        "The discriminator has the same from the image down.",
    )
    blocks: int = Field(2, ge=1, description="Residual blocks of a stage.")
    group_channels: int = Field(16, ge=1, description="Channels that a grouped convolution mixes.")
    class_channels: int = Field(64, ge=1, description="Numbers that describe a class to the generator.")

    def build_generator(self, data: DataSpec, *, latent: int, classes: int) -> R3ganGenerator:
        """See the class."""
        return R3ganGenerator(self, data, latent=latent, classes=classes)

    def build_discriminator(self, data: DataSpec, *, classes: int, bias: bool) -> R3ganDiscriminator:
        """See the class; its score has no bias."""
        return R3ganDiscriminator(self, data, classes=classes)

    @classmethod
    def tiny(cls) -> Self:
        """One doubling of the side, one block a stage."""
        return cls(channels=(8, 8), blocks=1, group_channels=4, class_channels=4)

    def problems(self, data: DataSpec) -> list[str]:
        """Sides that its stages do not give, and groups that do not divide channels."""
        found = side_problems(self.channels[1:], self.channels[1:], data)
        odd = [width for width in self.channels if 2 * width % self.group_channels]
        if odd:
            found.append(
                f"model.network.group_channels: {self.group_channels} does not divide {2 * odd[0]}, twice "
                f"the {odd[0]} of channels; use {math.gcd(2 * odd[0], self.group_channels)}"
            )
        return found

    @property
    def stages(self) -> tuple[int, ...]:
        """All."""
        return self.channels

    @property
    def gain(self) -> float:
        """Of the initial weights inside blocks: that of the leaky ReLU, times L^(-1 / (2m - 2)) for L blocks
        of m convolutions."""
        total = self.blocks * len(self.channels)
        return math.sqrt(2 / (1 + LEAK**2)) * math.pow(total, -1 / (2 * CONVOLUTIONS - 2))


class R3ganGenerator(GeneratorNet):
    """From a basis of maps, stage by stage."""

    def __init__(self, config: R3ganConfig, data: DataSpec, *, latent: int, classes: int) -> None:
        super().__init__()
        widths, doublings = config.channels, len(config.channels) - 1
        self.embedding = _embedding(classes, config.class_channels) if classes else None
        inputs = latent + (config.class_channels if classes else 0)
        self.sizes = _scaled(nn.Linear(inputs, widths[0], bias=False))
        self.basis = nn.Parameter(torch.randn(widths[0], data.height >> doublings, data.width >> doublings))
        self.stages = nn.ModuleList(
            _Stage(config, width, entry=_Widen(widths[at - 1], width) if at else None)
            for at, width in enumerate(widths)
        )
        self.image = _scaled(nn.Conv2d(widths[-1], data.channels, 1, bias=False))

    def forward(self, z_BD: Tensor, label_B: Tensor, **inputs: Any) -> Tensor:
        if self.embedding is not None:
            z_BD = torch.cat([z_BD, self.embedding(label_B)], 1)
        x_BCHW = self.basis * self.sizes(z_BD)[:, :, None, None]
        for at, stage in enumerate(self.stages):
            x_BCHW = self.attended(at, stage(x_BCHW), inputs)
        image_BCHW: Tensor = self.image(x_BCHW).float()
        return image_BCHW


class R3ganDiscriminator(DiscriminatorNet):
    """The generator's mirror image."""

    def __init__(self, config: R3ganConfig, data: DataSpec, *, classes: int) -> None:
        super().__init__()
        widths, halvings = config.channels[::-1], len(config.channels) - 1
        self.image = _scaled(nn.Conv2d(data.channels, widths[0], 1, bias=False))
        self.stages = nn.ModuleList(
            _Stage(config, width, exit=_Narrow(width, widths[at + 1]) if at < halvings else None)
            for at, width in enumerate(widths)
        )
        last, base = widths[-1], (data.height >> halvings, data.width >> halvings)
        self.basis = _scaled(nn.Conv2d(last, last, base, groups=last, bias=False))
        size = config.channels[0] if classes else 1
        self.linear = _scaled(nn.Linear(last, size, bias=False))
        self.embedding = _embedding(classes, size, size**-0.5) if classes else None

    def score(self, x_BCHW: Tensor, label_B: Tensor, **inputs: Any) -> Tensor:
        x_BCHW = self.image(x_BCHW)
        for stage in self.stages:
            x_BCHW = stage(x_BCHW)
        out_BS: Tensor = self.linear(self.basis(x_BCHW).flatten(1))
        if self.embedding is not None:
            out_BS = out_BS * self.embedding(label_B)
        return out_BS.float().sum(1)


class _Stage(nn.Module):
    """Residual blocks of one side, between a change of side before or after them."""

    def __init__(
        self, config: R3ganConfig, width: int, entry: nn.Module | None = None, exit: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.entry, self.exit = entry, exit
        self.blocks = nn.ModuleList(_Block(config, width) for _ in range(config.blocks))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if self.entry is not None:
            x_BCHW = self.entry(x_BCHW)
        for block in self.blocks:
            x_BCHW = block(x_BCHW)
        return x_BCHW if self.exit is None else self.exit(x_BCHW)


class _Block(nn.Module):
    def __init__(self, config: R3ganConfig, width: int) -> None:
        super().__init__()
        wide, groups = 2 * width, 2 * width // config.group_channels
        self.conv1 = _scaled(nn.Conv2d(width, wide, 1, bias=False), config.gain)
        self.conv2 = _scaled(nn.Conv2d(wide, wide, 3, 1, 1, groups=groups, bias=False), config.gain)
        self.conv3 = _scaled(nn.Conv2d(wide, width, 1, bias=False), 0)
        self.bias1, self.bias2 = nn.Parameter(torch.zeros(wide)), nn.Parameter(torch.zeros(wide))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = F.leaky_relu(self.conv1(x_BCHW) + self.bias1[:, None, None], LEAK)
        h_BCHW = F.leaky_relu(self.conv2(h_BCHW) + self.bias2[:, None, None], LEAK)
        out_BCHW: Tensor = x_BCHW + self.conv3(h_BCHW)
        return out_BCHW


class _Widen(nn.Module):
    """To other channels, then twice the side."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = _between(inputs, outputs)
        self.up = Up(TAPS)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        doubled_BCHW: Tensor = self.up(self.conv(x_BCHW))
        return doubled_BCHW


class _Narrow(nn.Module):
    """To half the side, then other channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.down = Down(TAPS)
        self.conv = _between(inputs, outputs)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        halved_BCHW: Tensor = self.conv(self.down(x_BCHW))
        return halved_BCHW


def _between(inputs: int, outputs: int) -> nn.Module:
    return nn.Identity() if inputs == outputs else _scaled(nn.Conv2d(inputs, outputs, 1, bias=False))


def _embedding(classes: int, size: int, gain: float = 1.0) -> nn.Embedding:
    """Rows from N(0, gain^2 / classes): those of a linear map of one number per class."""
    embedding = nn.Embedding(classes, size)
    nn.init.normal_(embedding.weight, 0.0, gain / math.sqrt(classes))
    return embedding


def _scaled(layer: nn.Conv2d | nn.Linear, gain: float = 1.0) -> Any:
    """The layer with weights from N(0, gain^2 / fan-in)."""
    nn.init.normal_(layer.weight, 0.0, gain / math.sqrt(layer.weight[0].numel()))
    return layer


COMPONENT = R3ganConfig

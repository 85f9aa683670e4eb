"""U-Net: halvings down to one pixel, and back up beside the maps of the way down (Isola et al. 2017, app.
6.1.1).

Dropout on the way up is the paper's source of variety; here samples are drawn without it.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.families.translation.blocks import LEAK, init_normal, normalised
from sfumato.families.translation.generators import GeneratorConfig

MOST = 8
"""Channels of the deepest maps, in multiples of the first."""
DROPPED = 3
"""Layers with dropout, from the deepest on, leaving out the very first."""


class UnetConfig(GeneratorConfig):
    """An encoder and a decoder with connections between maps of one side (Ronneberger et al. 2015)."""

    kind: Literal["unet"] = Field("unet", description="Selects the U-Net.")
    width: int = Field(
        64, ge=1, description="Channels after the first halving; up to 8 times as many follow."
    )
    halvings: int = Field(8, ge=2, description="How often the side is halved: 8 for 256 pixels.")
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of values dropped in the deepest layers of the decoder; 0.5 is usual.",
    )

    @property
    def couples_rows(self) -> bool:
        """With dropout."""
        return self.dropout > 0

    def build(self, inputs: int, outputs: int) -> nn.Module:
        """See the class."""
        return Unet(self, inputs, outputs)

    def problems(self, height: int, width: int) -> list[str]:
        """Sides that cannot be halved so often."""
        side = min(height, width)
        if height % (1 << self.halvings) == 0 and width % (1 << self.halvings) == 0:
            return []
        most = min((height & -height).bit_length(), (width & -width).bit_length()) - 1
        fix = f"use at most {most}" if most >= 2 else "pack images of a side that is a multiple of 4"
        return [f"model.generator.halvings: {self.halvings} do not fit a side of {side}; {fix}"]

    @classmethod
    def tiny(cls) -> Self:
        """Three halvings."""
        return cls(width=4, halvings=3)


class Unet(nn.Module):
    """See the top of the file."""

    def __init__(self, config: UnetConfig, inputs: int, outputs: int) -> None:
        super().__init__()
        deepest = config.halvings - 1
        widths = [config.width * min(MOST, 1 << at) for at in range(config.halvings)]
        self.down = nn.ModuleList(
            _Down(a, b, first=at == 0, normed=0 < at < deepest)
            for at, (a, b) in enumerate(zip([inputs, *widths], widths, strict=False))
        )
        self.up = nn.ModuleList(
            _Up(
                widths[at] * (1 if at == deepest else 2),
                widths[at - 1] if at else outputs,
                last=at == 0,
                dropout=config.dropout if deepest - DROPPED <= at < deepest and at else 0.0,
            )
            for at in range(deepest, -1, -1)
        )
        init_normal(self)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        kept = []
        for layer in self.down:
            x_BCHW = layer(x_BCHW)
            kept.append(x_BCHW)
        kept.pop()
        for layer in self.up:
            x_BCHW = layer(x_BCHW)
            if kept:
                x_BCHW = torch.cat([x_BCHW, kept.pop()], 1)
        return torch.tanh(x_BCHW.float())


class _Down(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, first: bool, normed: bool) -> None:
        super().__init__()
        self.first = first
        self.conv = nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False)
        self.norm = normalised(outputs, gains=True) if normed else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.conv(x_BCHW if self.first else F.leaky_relu(x_BCHW, LEAK))
        return x_BCHW if self.norm is None else self.norm(x_BCHW)


class _Up(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, last: bool, dropout: float) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=last)
        self.norm = None if last else normalised(outputs, gains=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.conv(F.relu(x_BCHW))
        if self.norm is not None:
            x_BCHW = self.norm(x_BCHW)
        dropped_BCHW: Tensor = self.dropout(x_BCHW)
        return dropped_BCHW


COMPONENT = UnetConfig

"""Residual translator: two halvings, residual blocks, two doublings (Johnson, Alahi, Fei-Fei 2016; Zhu et al.
2017, app. 7.2)."""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.families.translation.blocks import init_normal, normalised
from sfumato.families.translation.generators import GeneratorConfig

HALVINGS = 2


class ResnetConfig(GeneratorConfig):
    """Residual blocks at a quarter of the side (Johnson et al. 2016)."""

    kind: Literal["resnet"] = Field("resnet", description="Selects the residual translator.")
    width: int = Field(64, ge=1, description="Channels at the full side; four times as many in the blocks.")
    blocks: int = Field(9, ge=1, description="Residual blocks: 9 for 256 pixels, 6 for 128.")

    def build(self, inputs: int, outputs: int) -> nn.Module:
        """See the class."""
        return Resnet(self, inputs, outputs)

    def problems(self, height: int, width: int) -> list[str]:
        """Sides that are no multiple of 4, or under 8, where an edge cannot be mirrored."""
        odd = [side for side in (height, width) if side % (1 << HALVINGS) or side < 8]
        return [
            f"model.generator.kind: resnet halves the side twice and mirrors edges, which a side of {side} "
            "does not allow; pack images of a side that is a multiple of 4, of at least 8"
            for side in odd[:1]
        ]

    @classmethod
    def tiny(cls) -> Self:
        """One block."""
        return cls(width=4, blocks=1)


class Resnet(nn.Module):
    """See the top of the file."""

    def __init__(self, config: ResnetConfig, inputs: int, outputs: int) -> None:
        super().__init__()
        width = config.width
        # A normalisation that follows would take any bias out again.
        self.first = nn.Conv2d(inputs, width, 7, bias=False)
        self.down = nn.ModuleList(
            nn.Conv2d(width << at, width << (at + 1), 3, 2, 1, bias=False) for at in range(HALVINGS)
        )
        self.blocks = nn.ModuleList(_Block(width << HALVINGS) for _ in range(config.blocks))
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(width << (at + 1), width << at, 3, 2, 1, output_padding=1, bias=False)
            for at in range(HALVINGS - 1, -1, -1)
        )
        self.last = nn.Conv2d(width, outputs, 7)
        init_normal(self)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = _normal(self.first(_mirrored(x_BCHW, 3)))
        for layer in self.down:
            x_BCHW = _normal(layer(x_BCHW))
        for block in self.blocks:
            x_BCHW = block(x_BCHW)
        for layer in self.up:
            x_BCHW = _normal(layer(x_BCHW))
        return torch.tanh(self.last(_mirrored(x_BCHW, 3)).float())


class _Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, bias=False) for _ in range(2))
        self.norm = normalised(channels, gains=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = F.relu(self.norm(self.conv1(_mirrored(x_BCHW, 1))))
        out_BCHW: Tensor = x_BCHW + self.norm(self.conv2(_mirrored(h_BCHW, 1)))
        return out_BCHW


def _normal(x_BCHW: Tensor) -> Tensor:
    return F.relu(F.group_norm(x_BCHW, x_BCHW.shape[1]))


def _mirrored(x_BCHW: Tensor, by: int) -> Tensor:
    return F.pad(x_BCHW, (by, by, by, by), mode="reflect")


COMPONENT = ResnetConfig

"""What both growing networks share: sides, stages, and layers that are not in use yet."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.families.gan.layers.equalised import LEAK, EqualConv2d, pixel_norm

BASE = 4
"""The side of the first images."""


class Pair(nn.Module):
    """One or two convolutions of one side."""

    def __init__(self, inputs: int, outputs: int, *, convs: int, narrow: bool = False) -> None:
        super().__init__()
        middle = inputs if narrow else outputs  # the discriminator changes channels last
        sizes = [(inputs, middle), (middle, outputs)] if convs == 2 else [(inputs, outputs)]
        self.convs = nn.ModuleList(EqualConv2d(a, b, 3) for a, b in sizes)

    def forward(self, x_BCHW: Tensor, *, normed: bool = False) -> Tensor:
        for conv in self.convs:
            x_BCHW = F.leaky_relu(conv(x_BCHW), LEAK)
            x_BCHW = pixel_norm(x_BCHW) if normed else x_BCHW
        return x_BCHW


def stage(grown: float, top: int) -> tuple[int, float]:
    """The doublings of the present side, and how far the last of them has faded in, in (0, 1]."""
    level = min(math.ceil(grown), top)
    return level, min(1.0, grown - (level - 1))


def idle_part(layer: nn.Module, channels: int, like: Tensor) -> Tensor:
    """Zero, with a gradient of zero for the layer."""
    out: Tensor = layer(like.new_zeros(1, channels, 2, 2))
    return 0 * out.sum()


def halved(x_BCHW: Tensor, times: int) -> Tensor:
    """So many times half the side, by means."""
    return F.avg_pool2d(x_BCHW, 1 << times) if times else x_BCHW


def doubled(x_BCHW: Tensor, times: int) -> Tensor:
    """So many times twice the side, by repeating pixels."""
    return F.interpolate(x_BCHW, scale_factor=float(1 << times)) if times else x_BCHW

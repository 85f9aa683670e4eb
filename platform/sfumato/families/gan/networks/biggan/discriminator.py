"""BigGAN's discriminator, with the projection of the class."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.core.batch import DataSpec
from sfumato.families.gan.layers.attention import SelfAttention
from sfumato.families.gan.layers.blocks import Score, init_orthogonal
from sfumato.families.gan.networks import FeatureDiscriminator
from sfumato.layers.spectral import SpectralConv2d


class BigGanDiscriminator(FeatureDiscriminator):
    """A residual block for every halving, further ones at the last side, then a sum over pixels."""

    def __init__(
        self,
        channels: Sequence[int],
        data: DataSpec,
        *,
        flat_blocks: int,
        classes: int,
        bias: bool,
        attention: int | None,
    ) -> None:
        super().__init__()
        widths = (data.channels, *channels, *[channels[-1]] * flat_blocks)
        self.blocks = nn.ModuleList(
            _DownBlock(
                a,
                b,
                first=at == 0,
                halve=at < len(channels),
                attends=at < len(channels) and data.height >> (at + 1) == attention,
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

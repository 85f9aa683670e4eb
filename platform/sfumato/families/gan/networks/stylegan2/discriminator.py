"""StyleGAN2's discriminator (Karras et al. 2020, fig. 7; residual, or plain as for CIFAR-10 in
StyleGAN2-ADA)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from sfumato.families.gan.layers.equalised import EqualConv2d, EqualLinear, activated
from sfumato.families.gan.layers.minibatch import MinibatchStd
from sfumato.families.gan.networks import DiscriminatorNet
from sfumato.families.gan.styles.styled_generator import MappingNetwork
from sfumato.layers.resampling import Blur, Down


class StyleGan2Discriminator(DiscriminatorNet):
    """A block for every halving; the class's own direction scores the last features."""

    def __init__(
        self,
        colours: int,
        channels: Mapping[int, int],
        *,
        classes: int,
        style: int,
        depth: int,
        rate: float,
        bias: bool,
        residual: bool,
        group: int,
    ) -> None:
        """`channels` are those of each side, lowest first."""
        super().__init__()
        self.mixes_rows = group > 1
        widths = list(channels.values())[::-1]
        last, base = widths[-1], next(iter(channels))
        self.colours = EqualConv2d(colours, widths[0], 1)
        self.blocks = nn.ModuleList(_Block(a, b, residual=residual) for a, b in pairwise(widths))
        self.deviation = MinibatchStd(group) if group > 1 else None
        self.conv = EqualConv2d(last + (group > 1), last, 3)
        self.linear = EqualLinear(last * base**2, last)
        self.output = EqualLinear(last, style if classes else 1, bias=bias or bool(classes))
        self.mapping = MappingNetwork(0, style, classes, depth, rate) if classes else None

    def score(self, x_BCHW: Tensor, label_B: Tensor, **inputs: Any) -> Tensor:
        x_BCHW = activated(self.colours(x_BCHW))
        for block in self.blocks:
            x_BCHW = block(x_BCHW)
        if self.deviation is not None:
            x_BCHW = self.deviation(x_BCHW)
        x_BCHW = activated(self.conv(x_BCHW))
        out_BS: Tensor = self.output(activated(self.linear(x_BCHW.flatten(1)))).float()
        if self.mapping is None:
            return out_BS.squeeze(1)
        direction_BS: Tensor = self.mapping(None, label_B).float()
        return (out_BS * direction_BS).sum(1) / math.sqrt(out_BS.shape[1])


class _Block(nn.Module):
    """Two convolutions, the second of which halves the side."""

    def __init__(self, inputs: int, outputs: int, *, residual: bool) -> None:
        super().__init__()
        self.conv1 = EqualConv2d(inputs, inputs, 3)
        self.blur = Blur(padding=2)
        self.conv2 = EqualConv2d(inputs, outputs, 3, stride=2, padding=0)
        self.down = Down() if residual else None
        self.shortcut = EqualConv2d(inputs, outputs, 1, bias=False) if residual else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = activated(self.conv2(self.blur(activated(self.conv1(x_BCHW)))))
        if self.shortcut is None or self.down is None:
            return h_BCHW
        straight_BCHW: Tensor = self.shortcut(self.down(x_BCHW))
        return (h_BCHW + straight_BCHW) * math.sqrt(0.5)

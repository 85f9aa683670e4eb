"""The growing discriminator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.families.gan.layers.equalised import LEAK, EqualConv2d, EqualLinear
from sfumato.families.gan.layers.minibatch import MinibatchStd
from sfumato.families.gan.networks import DiscriminatorNet
from sfumato.families.gan.networks.progan.growing import BASE, Pair, halved, idle_part, stage


class ProGanDiscriminator(DiscriminatorNet):
    """The generator's mirror image."""

    def __init__(self, colours: int, widths: list[int], *, classes: int, bias: bool, group: int) -> None:
        super().__init__()
        self.mixes_rows = group > 1
        self.colours = nn.ModuleList(EqualConv2d(colours, width, 1) for width in widths)
        self.blocks = nn.ModuleList(
            Pair(width, widths[at], convs=2, narrow=True) for at, width in enumerate(widths[1:])
        )
        self.deviation = MinibatchStd(group) if group > 1 else None
        self.conv = EqualConv2d(widths[0] + (group > 1), widths[0], 3)
        self.linear = EqualLinear(widths[0] * BASE**2, widths[0])
        self.output = EqualLinear(widths[0], 1, bias=bias)
        self.embedding = nn.Embedding(classes, widths[0]) if classes else None
        self.widths, self.seen = widths, colours

    def score(self, x_BCHW: Tensor, label_B: Tensor, *, grown: float = 0.0, **inputs: Any) -> Tensor:
        top = len(self.widths) - 1
        level, alpha = stage(grown, top)
        image_BCHW = halved(x_BCHW, top - level)
        x_BCHW = F.leaky_relu(self.colours[level](image_BCHW), LEAK)
        idle = x_BCHW.new_zeros(())
        for at in range(top, -1, -1):
            if at not in (level, level - 1):
                idle = idle + idle_part(self.colours[at], self.seen, x_BCHW)
            if at > level:
                idle = idle + idle_part(self.blocks[at - 1], self.widths[at], x_BCHW)
            elif at:
                x_BCHW = halved(self.blocks[at - 1](x_BCHW), 1)
                if at == level:
                    before_BCHW = F.leaky_relu(self.colours[at - 1](halved(image_BCHW, 1)), LEAK)
                    x_BCHW = torch.lerp(before_BCHW, x_BCHW, alpha)
        if self.deviation is not None:
            x_BCHW = self.deviation(x_BCHW)
        x_BCHW = F.leaky_relu(self.conv(x_BCHW), LEAK)
        phi_BF = F.leaky_relu(self.linear(x_BCHW.flatten(1)), LEAK)
        score_B: Tensor = self.output(phi_BF).squeeze(1) + idle
        if self.embedding is not None:
            score_B = score_B + (self.embedding(label_B) * phi_BF).sum(1) / phi_BF.shape[1] ** 0.5
        return score_B.float()

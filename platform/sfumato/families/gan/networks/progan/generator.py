"""The growing generator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.families.gan.layers.equalised import LEAK, EqualConv2d, EqualLinear, pixel_norm
from sfumato.families.gan.networks import GeneratorNet
from sfumato.families.gan.networks.progan.growing import BASE, Pair, doubled, idle_part, stage


class ProGanGenerator(GeneratorNet):
    """Blocks from 4x4 up, each with a layer that shows its colours."""

    def __init__(self, colours: int, widths: list[int], *, latent: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, latent) if classes else None
        self.first = EqualLinear(latent * (2 if classes else 1), widths[0] * BASE**2)
        self.blocks = nn.ModuleList(
            Pair(widths[max(0, at - 1)], width, convs=2 if at else 1) for at, width in enumerate(widths)
        )
        self.colours = nn.ModuleList(EqualConv2d(width, colours, 1) for width in widths)
        self.widths = widths

    def forward(self, z_BD: Tensor, label_B: Tensor, *, grown: float = 0.0, **inputs: Any) -> Tensor:
        if self.embedding is not None:
            z_BD = torch.cat([z_BD, self.embedding(label_B)], 1)
        top = len(self.blocks) - 1
        level, alpha = stage(grown, top)
        x_BCHW = self.first(pixel_norm(z_BD)).unflatten(1, (-1, BASE, BASE))
        x_BCHW = pixel_norm(F.leaky_relu(x_BCHW, LEAK))
        image_BCHW = before_BCHW = None
        idle = x_BCHW.new_zeros(())
        for at, (block, colours) in enumerate(zip(self.blocks, self.colours, strict=True)):
            if at > level:
                idle = idle + idle_part(block, self.widths[at - 1], x_BCHW)
                idle = idle + idle_part(colours, self.widths[at], x_BCHW)
                continue
            x_BCHW = block(x_BCHW if at == 0 else doubled(x_BCHW, 1), normed=True)
            if at < level - 1:
                idle = idle + idle_part(colours, self.widths[at], x_BCHW)
                continue
            before_BCHW, image_BCHW = image_BCHW, colours(x_BCHW)
        assert image_BCHW is not None, "the first block always counts"
        if before_BCHW is not None:
            image_BCHW = torch.lerp(doubled(before_BCHW, 1), image_BCHW, alpha)
        return (doubled(image_BCHW, top - level) + idle).float()

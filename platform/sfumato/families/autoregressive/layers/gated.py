"""The blocks of Gated PixelCNN (van den Oord et al. 2016, "Conditional image generation with PixelCNN
decoders", fig. 2 and eq. 4).

Two stacks run side by side. The vertical one sees the rows above a pixel, the horizontal one the pixels to
its left and, through a link, the vertical stack one row up; so nothing is hidden from a pixel and nothing of
itself or after it is seen. With r = kernel // 2:

    v(i, j) sees rows i - r .. i of the vertical input, and reaches the horizontal stack one row lower;
    h(i, j) sees columns j - r .. j of its row; in the first block, whose input is the image, j - r .. j - 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GatedBlock(nn.Module):
    """One layer of both stacks. Convolutions have no padding: sampling calls them on windows."""

    def __init__(
        self, inputs: int, width: int, kernel: int, *, first: bool, last: bool, classes: int
    ) -> None:
        super().__init__()
        self.reach = kernel // 2
        self.first = first
        self.vertical = nn.Conv2d(inputs, 2 * width, (self.reach + 1, kernel))
        self.link = nn.Conv2d(2 * width, 2 * width, 1)
        self.horizontal = nn.Conv2d(inputs, 2 * width, (1, self.reach if first else self.reach + 1))
        # After the last block only the contribution to the output counts.
        self.residual = None if last else nn.Conv2d(width, width, 1)
        self.skip = nn.Conv2d(width, width, 1)
        self.condition = nn.Embedding(classes, 4 * width) if classes else None

    def forward(self, v: Tensor, h: Tensor, label_B: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Next vertical and horizontal features, and the output's contribution: [B, width, H, W] each."""
        r = self.reach
        bias_v, bias_h = self.biases(label_B)
        above = self.vertical(F.pad(v, (r, r, r, 0)))
        linked = self.link(F.pad(above, (0, 0, 1, 0))[:, :, :-1])
        left = self.horizontal(F.pad(h, (r, 0)))[..., : h.shape[-1]]
        h_out, skip = self.join(left, linked, bias_h, h)
        return gate(above + bias_v), h_out, skip

    def join(
        self, left: Tensor, linked: Tensor, bias: Tensor | float, h: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The horizontal features after the gate, with their residual, and the contribution to the output."""
        gated = gate(left + linked + bias)
        if self.residual is None:
            return gated, self.skip(gated)
        out = self.residual(gated)
        return (out if self.first or h is None else out + h), self.skip(gated)

    def biases(self, label_B: Tensor | None) -> tuple[Tensor | float, Tensor | float]:
        """The class's share of both gates, [B, 2 width, 1, 1] each; 0 without classes."""
        if self.condition is None:
            return 0.0, 0.0
        assert label_B is not None
        vertical, horizontal = self.condition(label_B)[:, :, None, None].chunk(2, dim=1)
        return vertical, horizontal


def gate(features: Tensor) -> Tensor:
    """tanh of one half of the channels times sigmoid of the other."""
    a, b = features.chunk(2, dim=1)
    return torch.tanh(a) * torch.sigmoid(b)


class PixelCnnNetwork(nn.Module):
    """From images [B, C, H, W] in [-1, 1] to the parameters of each pixel's distribution, [B, outputs, H, W].

    The parameters of a pixel depend only on the pixels before it in raster order.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        width: int,
        layers: int,
        kernel: int,
        head_width: int,
        classes: int,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            GatedBlock(
                width if layer else channels + 1,
                width,
                kernel,
                first=layer == 0,
                last=layer == layers - 1,
                classes=classes,
            )
            for layer in range(layers)
        )
        self.head = nn.Sequential(
            nn.ReLU(), nn.Conv2d(width, head_width, 1), nn.ReLU(), nn.Conv2d(head_width, outputs, 1)
        )

    def forward(self, x_BCHW: Tensor, label_B: Tensor | None) -> Tensor:
        v = h = with_ones(x_BCHW)
        total: Tensor | None = None
        for block in self.blocks:
            v, h, skip = block(v, h, label_B)
            total = skip if total is None else total + skip
        output: Tensor = self.head(total)
        return output.float()


def with_ones(x_BCHW: Tensor) -> Tensor:
    """The image with a channel of ones, by which the network tells black from outside the image."""
    return torch.cat([x_BCHW, torch.ones_like(x_BCHW[:, :1])], dim=1)

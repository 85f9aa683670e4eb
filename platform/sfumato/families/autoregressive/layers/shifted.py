"""The network of PixelCNN++ (Salimans et al. 2017, fig. 2): two streams through a causal U-Net.

The first stream sees the rows above a pixel, the second also the pixels to its left. A convolution of the
first reaches one row up and to both sides ("down-shifted"), one of the second one row up and to the left
("down-right-shifted"). Both start shifted by one, so that nothing sees its own pixel.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.families.autoregressive.layers.gated import with_ones

Shift = Literal["down", "right"]
KERNELS: dict[Shift, tuple[int, int]] = {"down": (2, 3), "right": (2, 2)}


class Shifted(nn.Module):
    """A causal convolution; `stride` 2 halves the side."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        shift: Shift,
        *,
        kernel: tuple[int, int] | None = None,
        stride: int = 1,
    ) -> None:
        super().__init__()
        height, width = kernel or KERNELS[shift]
        side = (width - 1) // 2 if shift == "down" else 0
        self._pad = (width - 1 - side, side, height - 1, 0)
        self.conv = nn.Conv2d(inputs, outputs, (height, width), stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x_BCHW, self._pad))
        return out


class ShiftedUp(nn.Module):
    """Its counterpart, which doubles the side."""

    def __init__(self, channels: int, shift: Shift) -> None:
        super().__init__()
        self._side = 1 if shift == "down" else 0
        self.conv = nn.ConvTranspose2d(channels, channels, KERNELS[shift], 2, output_padding=self._side)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        height, width = 2 * x_BCHW.shape[2], 2 * x_BCHW.shape[3]
        out: Tensor = self.conv(x_BCHW)
        return out[:, :, :height, self._side : self._side + width]


class GatedResidual(nn.Module):
    """Two convolutions and a gate, with a short cut from another stream or layer (ibid., sec. 2.4)."""

    def __init__(self, width: int, shift: Shift, *, aside: int, classes: int, dropout: float) -> None:
        """`aside` is the channels of the short cut, 0 without."""
        super().__init__()
        self.first = Shifted(2 * width, width, shift)
        self.aside = nn.Conv2d(2 * aside, width, 1) if aside else None
        self.drop = nn.Dropout(dropout)
        self.second = Shifted(2 * width, 2 * width, shift)
        self.classes = nn.Embedding(classes, 2 * width) if classes else None
        with torch.no_grad():
            self.second.conv.weight.mul_(0.1)

    def forward(self, x: Tensor, aside: Tensor | None, label_B: Tensor | None) -> Tensor:
        h = self.first(both_signs(x))
        if self.aside is not None:
            assert aside is not None
            h = h + self.aside(both_signs(aside))
        h = self.second(self.drop(both_signs(h)))
        if self.classes is not None:
            h = h + self.classes(label_B)[:, :, None, None]
        return x + F.glu(h, dim=1)


class Pair(nn.Module):
    """A layer of both streams; going up, each also takes what the layer of that size going down gave."""

    def __init__(self, width: int, *, up: bool, classes: int, dropout: float) -> None:
        super().__init__()
        shared = {"classes": classes, "dropout": dropout}
        self.above = GatedResidual(width, "down", aside=width if up else 0, **shared)  # type: ignore[arg-type]
        self.left = GatedResidual(width, "right", aside=2 * width if up else width, **shared)  # type: ignore[arg-type]

    def forward(
        self, above: Tensor, left: Tensor, earlier: tuple[Tensor, Tensor] | None, label_B: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        above = self.above(above, earlier[0] if earlier else None, label_B)
        aside = above if earlier is None else torch.cat([above, earlier[1]], dim=1)
        return above, self.left(left, aside, label_B)


class Resize(nn.Module):
    """Both streams at half or twice the side."""

    def __init__(self, width: int, *, up: bool) -> None:
        super().__init__()
        self.above: nn.Module = ShiftedUp(width, "down") if up else Shifted(width, width, "down", stride=2)
        self.left: nn.Module = ShiftedUp(width, "right") if up else Shifted(width, width, "right", stride=2)

    def forward(self, above: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
        return self.above(above), self.left(left)


class ShiftedNetwork(nn.Module):
    """From images [B, C, H, W] in [-1, 1] to the parameters of each pixel's distribution, [B, P, H, W]."""

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        width: int,
        blocks: int,
        levels: int,
        classes: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self._levels, self._blocks = levels, blocks
        self.above_first = Shifted(channels + 1, width, "down")
        self.left_first = Shifted(channels + 1, width, "down", kernel=(1, 3))
        self.left_second = Shifted(channels + 1, width, "right", kernel=(2, 1))
        self.down = nn.ModuleList(
            Pair(width, up=False, classes=classes, dropout=dropout) for _ in range(levels * blocks)
        )
        self.shrink = nn.ModuleList(Resize(width, up=False) for _ in range(levels - 1))
        # One more per level than going down but the first: these take what the halving gave.
        self.up = nn.ModuleList(
            Pair(width, up=True, classes=classes, dropout=dropout)
            for level in range(levels)
            for _ in range(blocks + (level > 0))
        )
        self.grow = nn.ModuleList(Resize(width, up=True) for _ in range(levels - 1))
        self.last = nn.Conv2d(width, outputs, 1)

    def forward(self, x_BCHW: Tensor, label_B: Tensor | None) -> Tensor:
        x_BCHW = with_ones(x_BCHW)
        above = below(self.above_first(x_BCHW))
        left = below(self.left_first(x_BCHW)) + beside(self.left_second(x_BCHW))
        kept = [(above, left)]
        for level in range(self._levels):
            for block in range(self._blocks):
                above, left = self.down[level * self._blocks + block](above, left, None, label_B)
                kept.append((above, left))
            if level < self._levels - 1:
                above, left = self.shrink[level](above, left)
                kept.append((above, left))
        above, left = kept.pop()
        number = 0
        for level in range(self._levels):
            for _ in range(self._blocks + (level > 0)):
                above, left = self.up[number](above, left, kept.pop(), label_B)
                number += 1
            if level < self._levels - 1:
                above, left = self.grow[level](above, left)
        assert not kept
        output: Tensor = self.last(F.elu(left))
        return output.float()


def below(x_BCHW: Tensor) -> Tensor:
    """What is known of a pixel from the row above: rows moved down by one."""
    return F.pad(x_BCHW, (0, 0, 1, 0))[:, :, :-1]


def beside(x_BCHW: Tensor) -> Tensor:
    """Columns moved to the right by one."""
    return F.pad(x_BCHW, (1, 0))[..., :-1]


def both_signs(x_BCHW: Tensor) -> Tensor:
    """elu of the features and of their negatives, side by side (concat_elu)."""
    return F.elu(torch.cat([x_BCHW, -x_BCHW], dim=1))

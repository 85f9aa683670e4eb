"""Drawing pixels in raster order without computing anything twice.

A pixel's parameters need the horizontal stack at that pixel alone, and the vertical stack at the row above,
which is computed once per row. Each block keeps the last rows and columns of its inputs that its windows
reach; an image costs about one forward pass in arithmetic instead of one per pixel.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.families.autoregressive.layers.gated import GatedBlock, PixelCnnNetwork, gate, with_ones

Draw = Callable[[Tensor, int, int], Tensor]
"""From parameters [B, outputs, 1, 1] and the pixel's row and column to its value [B, C, 1, 1] in [-1, 1]."""


def draw_image(
    network: PixelCnnNetwork, shape: tuple[int, int, int], rows: int, label_B: Tensor | None, draw: Draw
) -> Tensor:
    """Images [rows, C, H, W] in [-1, 1], pixel after pixel."""
    channels, height, width = shape
    device = next(network.parameters()).device
    blocks = [_Memory(block, rows, width, label_B) for block in _blocks(network)]
    x_BCHW = torch.zeros(rows, channels, height, width, device=device)
    for row in range(height):
        for memory in blocks:
            memory.start_row()
        for column in range(width):
            x_BCHW[:, :, row, column] = draw(_parameters(network, blocks), row, column)[:, :, 0, 0]
            blocks[0].remember(with_ones(x_BCHW[:, :, row : row + 1, column : column + 1]))
        features = with_ones(x_BCHW[:, :, row : row + 1])
        for memory in blocks:
            features = memory.finish_row(features)
    return x_BCHW


def _blocks(network: PixelCnnNetwork) -> list[GatedBlock]:
    return [block for block in network.blocks if isinstance(block, GatedBlock)]


def _parameters(network: PixelCnnNetwork, blocks: list[_Memory]) -> Tensor:
    """The output for the next pixel, [B, outputs, 1, 1]."""
    h, total = blocks[0].pixel(None)
    for memory in blocks[1:]:
        h, skip = memory.pixel(h)
        total = total + skip
    output: Tensor = network.head(total)
    return output.float()


class _Memory:
    """What one block needs to remember of earlier pixels."""

    def __init__(self, block: GatedBlock, rows: int, width: int, label_B: Tensor | None) -> None:
        self._block = block
        weight = block.vertical.weight
        self._above = weight.new_zeros(rows, weight.shape[1], block.reach, width)
        self._left = self._above[:, :, :1, : block.reach]
        self._empty = weight.new_zeros(rows, weight.shape[1], 1, block.reach)
        self._linked = block.link(weight.new_zeros(rows, weight.shape[0], 1, width))
        self._bias_v, self._bias_h = block.biases(label_B)
        self._column = 0

    def start_row(self) -> None:
        self._left, self._column = self._empty, 0

    def pixel(self, h: Tensor | None) -> tuple[Tensor, Tensor]:
        """The horizontal stack at the next pixel; the first block knows the pixels before it, not `h`."""
        block, at = self._block, self._column
        window = self._left if h is None else torch.cat([self._left, h], dim=3)
        linked = self._linked[:, :, :, at : at + 1]
        out = block.join(block.horizontal(window), linked, self._bias_h, h)
        if h is not None:
            self.remember(h)
        return out

    def remember(self, h: Tensor) -> None:
        """Store the horizontal input at a pixel, and move to the next."""
        self._left = torch.cat([self._left, h], dim=3)[..., 1:]
        self._column += 1

    def finish_row(self, features: Tensor) -> Tensor:
        """The vertical stack at a complete row, to which the row below will be linked."""
        reach = self._block.reach
        window = torch.cat([self._above, features], dim=2)
        above = self._block.vertical(F.pad(window, (reach, reach)))
        self._above = window[:, :, 1:]
        self._linked = self._block.link(above)
        return gate(above + self._bias_v)

"""The network of the Image Transformer (Parmar et al. 2018, sec. 4): attention over the pixels drawn so far.

Pixels are drawn in an order, in blocks. A pixel sees those before it that lie in its block or in the memory
around it: the pixels before the block in one dimension, a margin of the block above and to both sides in two.
Token t holds the pixel before the t-th and the t-th one's place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Layout:
    """The order of pixels, numbers in raster order [T], and which tokens each token sees, bool [T, T]."""

    order_T: Tensor
    sees_TT: Tensor


def everything(height: int, width: int) -> Layout:
    """Raster order, all pixels before."""
    total = height * width
    return Layout(torch.arange(total), torch.ones(total, total, dtype=torch.bool).tril())


def in_rows(height: int, width: int, block: int, memory: int) -> Layout:
    """Raster order; blocks of so many pixels, and so many before them (ibid., local 1D attention)."""
    place = torch.arange(height * width)
    first = place // block * block - memory
    return Layout(place, (place <= place[:, None]) & (place >= first[:, None]))


def in_blocks(height: int, width: int, block: tuple[int, int], memory: tuple[int, int]) -> Layout:
    """Rectangles in raster order, and within them raster order (ibid., local 2D attention)."""
    row = torch.arange(height)[:, None].expand(height, width).flatten()
    column = torch.arange(width).expand(height, width).flatten()
    rank = ((row // block[0] * (width // block[1]) + column // block[1]) * block[0] + row % block[0]) * block[
        1
    ] + column % block[1]
    order = rank.argsort()
    row, column = row[order], column[order]
    top, left = row // block[0] * block[0], column // block[1] * block[1]
    inside = (
        (row >= top[:, None] - memory[0])
        & (column >= left[:, None] - memory[1])
        & (column < left[:, None] + block[1] + memory[1])
    )
    return Layout(order, inside.tril())


Cache = tuple[Tensor, Tensor]


class LocalBlock(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x_BTD: Tensor, sees: Tensor, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """The next features and the cache with these tokens; `sees` [T, tokens so far]."""
        b, t, d = x_BTD.shape
        qkv = self.qkv(self.norm_attention(x_BTD)).view(b, t, 3, self._heads, d // self._heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if cache is not None:
            k, v = torch.cat([cache[0], k], dim=2), torch.cat([cache[1], v], dim=2)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=sees)
        x_BTD = x_BTD + self.out(mixed.transpose(1, 2).reshape(b, t, d))
        return x_BTD + self.mlp(self.norm_mlp(x_BTD)), (k, v)


class ImageTransformer(nn.Module):
    """From images [B, C, H, W] in [-1, 1] to the parameters of each pixel's distribution, [B, P, H, W]."""

    order: Tensor
    sees: Tensor

    def __init__(
        self,
        shape: tuple[int, int, int],
        outputs: int,
        layout: Layout,
        *,
        width: int,
        layers: int,
        heads: int,
        classes: int,
    ) -> None:
        super().__init__()
        channels, height, row = shape
        self._row = row
        self.register_buffer("order", layout.order_T, persistent=False)
        self.register_buffer("sees", layout.sees_TT, persistent=False)
        self.pixel = nn.Linear(channels, width)
        self.start = nn.Parameter(0.02 * torch.randn(width))
        self.rows = nn.Parameter(0.02 * torch.randn(height, width))
        self.columns = nn.Parameter(0.02 * torch.randn(row, width))
        self.classes = nn.Embedding(classes, width) if classes else None
        self.blocks = nn.ModuleList(LocalBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)

    def forward(self, x_BCHW: Tensor, label_B: Tensor | None) -> Tensor:
        pixels_BTC = x_BCHW.flatten(2).transpose(1, 2)[:, self.order]
        h_BTD = self._tokens(pixels_BTC[:, :-1], label_B, 0, len(self.order))
        for block in self.blocks:
            h_BTD, _ = block(h_BTD, self.sees)
        out_BTP = self.head(self.norm(h_BTD))
        back_BTP = torch.zeros_like(out_BTP).index_copy(1, self.order, out_BTP)
        b, _, height, width = x_BCHW.shape
        output: Tensor = back_BTP.transpose(1, 2).reshape(b, -1, height, width).float()
        return output

    def step(
        self, pixel_B1C: Tensor | None, place: int, label_B: Tensor | None, caches: list[Cache], rows: int
    ) -> Tensor:
        """Parameters [B, P, 1, 1] of the pixel that is number `place` in the order, given the one before it
        and the caches of the others, which are brought up to date."""
        before = self.start.new_zeros(rows, 0, self.pixel.in_features) if pixel_B1C is None else pixel_B1C
        h_BTD = self._tokens(before, label_B, place, place + 1)
        for index, block in enumerate(self.blocks):
            earlier = caches[index] if place else None
            h_BTD, cache = block(h_BTD, self.sees[place : place + 1, : place + 1], earlier)
            caches[index : index + 1] = [cache]
        output: Tensor = self.head(self.norm(h_BTD)).transpose(1, 2)[..., None].float()
        return output

    def _tokens(self, before_BTC: Tensor, label_B: Tensor | None, first: int, last: int) -> Tensor:
        """Tokens first .. last - 1, from the pixels before them; the first one of all has the start's."""
        h_BTD: Tensor = self.pixel(before_BTC)
        if not first:
            h_BTD = torch.cat([self.start.to(h_BTD.dtype).expand(len(h_BTD), 1, -1), h_BTD], dim=1)
        places = self.order[first:last]
        h_BTD = h_BTD + self.rows[places // self._row] + self.columns[places % self._row]
        if self.classes is not None:
            h_BTD = h_BTD + self.classes(label_B)[:, None]
        return h_BTD

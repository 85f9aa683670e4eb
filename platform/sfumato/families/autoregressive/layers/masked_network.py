"""The bidirectional transformer of MaskGIT (Chang et al. 2022) over a grid of codes, some of them masked."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MaskedBlock(nn.Module):
    """Pre-norm attention over all positions, and an MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x_BTD: Tensor) -> Tensor:
        b, t, d = x_BTD.shape
        qkv = self.qkv(self.norm_attention(x_BTD)).view(b, t, 3, self._heads, d // self._heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        x_BTD = x_BTD + self.out(mixed.transpose(1, 2).reshape(b, t, d))
        out: Tensor = x_BTD + self.mlp(self.norm_mlp(x_BTD))
        return out


class MaskedNetwork(nn.Module):
    """Logits [B, T, codes] of every position; a masked one holds the number of codes.

    `classes` counts the class tokens: those of the data and one for none.
    """

    def __init__(self, codes: int, length: int, classes: int, *, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.classes = nn.Embedding(classes, width)
        self.codes = nn.Embedding(codes + 1, width)
        self.positions = nn.Parameter(torch.empty(length + 1, width))
        self.blocks = nn.ModuleList(MaskedBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, codes)
        for weight in (self.classes.weight, self.codes.weight, self.positions, self.head.weight):
            nn.init.normal_(weight, std=0.02)

    def forward(self, codes_BT: Tensor, label_B: Tensor) -> Tensor:
        x_BTD = torch.cat([self.classes(label_B)[:, None], self.codes(codes_BT)], dim=1) + self.positions
        for block in self.blocks:
            x_BTD = block(x_BTD)
        logits: Tensor = self.head(self.norm(x_BTD[:, 1:])).float()
        return logits

"""A decoder transformer over a sequence of codes, with a key-value cache for drawing.

Pre-norm blocks of causal self-attention and an MLP (Radford et al. 2019), learned positions. The sequence
starts with a class token, so position t predicts code t from the class and the codes before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.families.autoregressive.code_model import Cache, causal


class TransformerBlock(nn.Module):
    """Attention and MLP, each with its residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x_BTD: Tensor, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """The next features and the cache with these positions."""
        b, t, d = x_BTD.shape
        qkv = self.qkv(self.norm_attention(x_BTD)).view(b, t, 3, self._heads, d // self._heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mask = None
        if cache is not None:
            k, v = torch.cat([cache[0], k], dim=2), torch.cat([cache[1], v], dim=2)
            mask = causal(t, k.shape[2], k.device)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=cache is None)
        x_BTD = x_BTD + self.out(attended.transpose(1, 2).reshape(b, t, d))
        return x_BTD + self.mlp(self.norm_mlp(x_BTD)), (k, v)


class CodeNetwork(nn.Module):
    """Logits of each code of a sequence given its class and the codes before it.

    `classes` counts the class tokens: those of the data and one for none.
    """

    def __init__(self, codes: int, length: int, classes: int, *, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.classes = nn.Embedding(classes, width)
        self.codes = nn.Embedding(codes, width)
        self.positions = nn.Parameter(torch.empty(length, width))
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, codes, bias=False)
        for weight in (self.classes.weight, self.codes.weight, self.positions, self.head.weight):
            nn.init.normal_(weight, std=0.02)

    def forward(
        self, codes_BT: Tensor, label_B: Tensor, caches: Sequence[Cache] | None = None, fresh: int = 1
    ) -> tuple[Tensor, list[Cache]]:
        """As `code_model.CodeModel`."""
        t = codes_BT.shape[1]
        if caches is None:
            x_BTD = torch.cat([self.classes(label_B)[:, None], self.codes(codes_BT)], dim=1)
            x_BTD = x_BTD + self.positions[: t + 1]
        else:
            x_BTD = self.codes(codes_BT[:, t - fresh :]) + self.positions[t + 1 - fresh : t + 1]
        found = []
        for index, block in enumerate(self.blocks):
            x_BTD, cache = block(x_BTD, None if caches is None else caches[index])
            found.append(cache)
        logits: Tensor = self.head(self.norm(x_BTD))
        return logits.float(), found

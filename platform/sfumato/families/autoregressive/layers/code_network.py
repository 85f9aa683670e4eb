"""A decoder transformer over a sequence of codes, with a memory of keys and values for drawing.

Pre-norm blocks of causal self-attention and an MLP (Radford et al. 2019), learned positions. The sequence
starts with a class token, so position t predicts code t from the class and the codes before it.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.families.autoregressive.code_model import tokens
from sfumato.families.autoregressive.drawing.memory import Extend, Memory


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

    def forward(self, x_BTD: Tensor, extend: Extend | None = None, seen: Tensor | None = None) -> Tensor:
        """The next features; with `extend`, they follow those that a memory has (`memory.Window`)."""
        b, t, d = x_BTD.shape
        qkv = self.qkv(self.norm_attention(x_BTD)).view(b, t, 3, self._heads, d // self._heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if extend is not None:
            k, v = extend(k, v)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=extend is None)
        x_BTD = x_BTD + self.out(attended.transpose(1, 2).reshape(b, t, d))
        out: Tensor = x_BTD + self.mlp(self.norm_mlp(x_BTD))
        return out


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
        self, codes_BT: Tensor, label_B: Tensor, memory: Memory | None = None, fresh: int = 1
    ) -> Tensor:
        """As `code_model.CodeModel`."""
        if memory is None:
            x_BTD = torch.cat([self.classes(label_B)[:, None], self.codes(codes_BT)], dim=1)
            x_BTD = x_BTD + self.positions[: x_BTD.shape[1]]
            for block in self.blocks:
                x_BTD = block(x_BTD)
        else:
            places, seen = memory.open(fresh, codes_BT.device)
            x_BTD = tokens(self.classes, self.codes, codes_BT, label_B, places)
            x_BTD = x_BTD + self.positions[places.clamp_max(len(self.positions) - 1)]
            for index, block in enumerate(self.blocks):
                x_BTD = block(x_BTD, partial(memory.extended, index), seen)
            memory.close()
        logits: Tensor = self.head(self.norm(x_BTD))
        return logits.float()

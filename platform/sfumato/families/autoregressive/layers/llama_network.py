"""The decoder transformer of LlamaGen (Sun et al. 2024): pre-norm blocks with RMSNorm, SwiGLU, 2-D RoPE."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.families.autoregressive.code_model import tokens
from sfumato.families.autoregressive.drawing.memory import Extend, Memory
from sfumato.layers.rope import grid_angles, turned


class LlamaBlock(nn.Module):
    """Attention and a gated MLP, without biases."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self._heads = heads
        self.norm_attention = nn.RMSNorm(width, eps=1e-5)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.norm_mlp = nn.RMSNorm(width, eps=1e-5)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(
        self, x_BTD: Tensor, angles: Tensor, extend: Extend | None = None, seen: Tensor | None = None
    ) -> Tensor:
        """The next features; `angles` [T, P] or [B, 1, T, P] are those of these positions. With `extend`,
        they follow those that a memory has (`memory.Window`)."""
        b, t, d = x_BTD.shape
        qkv = self.qkv(self.norm_attention(x_BTD)).view(b, t, 3, self._heads, d // self._heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q, k = turned(q, angles), turned(k, angles)
        if extend is not None:
            k, v = extend(k, v)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=extend is None)
        x_BTD = x_BTD + self.out(mixed.transpose(1, 2).reshape(b, t, d))
        h = self.norm_mlp(x_BTD)
        out: Tensor = x_BTD + self.down(F.silu(self.gate(h)) * self.up(h))
        return out


class LlamaNetwork(nn.Module):
    """Implements `code_model.CodeModel` for a grid of codes in raster order, after a class token.

    `classes` counts the class tokens: those of the data and one for none.
    """

    angles: Tensor

    def __init__(
        self,
        codes: int,
        grid: tuple[int, int],
        classes: int,
        *,
        width: int,
        layers: int,
        heads: int,
        multiple: int,
    ) -> None:
        super().__init__()
        hidden = -(-(8 * width // 3) // multiple) * multiple
        self.classes = nn.Embedding(classes, width)
        self.codes = nn.Embedding(codes, width)
        self.blocks = nn.ModuleList(LlamaBlock(width, heads, hidden) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.head = nn.Linear(width, codes, bias=False)
        self.register_buffer("angles", grid_angles(*grid, width // heads), persistent=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(
        self, codes_BT: Tensor, label_B: Tensor, memory: Memory | None = None, fresh: int = 1
    ) -> Tensor:
        """As `code_model.CodeModel`."""
        if memory is None:
            x_BTD = torch.cat([self.classes(label_B)[:, None], self.codes(codes_BT)], dim=1)
            for block in self.blocks:
                x_BTD = block(x_BTD, self.angles[: x_BTD.shape[1]])
        else:
            places, seen = memory.open(fresh, codes_BT.device)
            x_BTD = tokens(self.classes, self.codes, codes_BT, label_B, places)
            angles = self.angles[places.clamp_max(len(self.angles) - 1)][:, None]
            for index, block in enumerate(self.blocks):
                x_BTD = block(x_BTD, angles, partial(memory.extended, index), seen)
            memory.close()
        logits: Tensor = self.head(self.norm(x_BTD))
        return logits.float()

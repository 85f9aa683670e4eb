"""The transformer of VAR (Tian et al. 2024, sec. 3.2 and app. A): adaptive layer norms, attention by scales.

Every token sees those of its own scale and of all before it. The first scale starts from the class; the
tokens of a later one from what the scales before it add up to.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHARPEST = 4.605170185988092
"""log 100, the most by which attention multiplies the cosine of query and key."""


class ScaleBlock(nn.Module):
    """Attention over normalised queries and keys, and an MLP, both led by the class."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.query_bias, self.value_bias = (nn.Parameter(torch.zeros(width)) for _ in range(2))
        self.sharpness = nn.Parameter(torch.full((heads, 1, 1), 4.0).log())
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.led = nn.Linear(width, 6 * width)

    def forward(self, x_BTD: Tensor, class_BD: Tensor, mask_TT: Tensor) -> Tensor:
        b, t, d = x_BTD.shape
        gate1, gate2, scale1, scale2, shift1, shift2 = self.led(F.silu(class_BD))[:, None].chunk(6, 2)
        h_BTD = F.layer_norm(x_BTD, (d,), eps=1e-6) * (1 + scale1) + shift1
        bias = torch.cat([self.query_bias, torch.zeros_like(self.query_bias), self.value_bias])
        qkv = (self.qkv(h_BTD) + bias).view(b, t, 3, self._heads, d // self._heads).permute(2, 0, 3, 1, 4)
        sharp = self.sharpness.clamp(max=SHARPEST).exp()
        query, key = F.normalize(qkv[0], dim=3) * sharp, F.normalize(qkv[1], dim=3)
        mixed = F.scaled_dot_product_attention(query, key.to(query), qkv[2].to(query), mask_TT, scale=1.0)
        x_BTD = x_BTD + gate1 * self.out(mixed.transpose(1, 2).reshape(b, t, d).to(x_BTD.dtype))
        h_BTD = F.layer_norm(x_BTD, (d,), eps=1e-6) * (1 + scale2) + shift2
        out_BTD: Tensor = x_BTD + gate2 * self.down(F.gelu(self.up(h_BTD), approximate="tanh"))
        return out_BTD


class ScaleNetwork(nn.Module):
    """Logits of the tokens of all scales; `classes` counts those of the data and one for none."""

    scale_of: Tensor

    def __init__(
        self,
        codes: int,
        channels: int,
        scales: Sequence[int],
        classes: int,
        *,
        width: int,
        layers: int,
        heads: int,
    ) -> None:
        """`channels` are those of the first stage's latents."""
        super().__init__()
        counts = [side**2 for side in scales]
        self.first = counts[0]
        numbers = [at for at, count in enumerate(counts) for _ in range(count)]
        self.register_buffer("scale_of", torch.tensor(numbers), persistent=False)
        self.classes = nn.Embedding(classes, width)
        self.start = nn.Parameter(0.02 * torch.randn(1, self.first, width))
        self.words = nn.Linear(channels, width)
        self.places = nn.Parameter(0.02 * torch.randn(1, sum(counts), width))
        self.levels = nn.Embedding(len(scales), width)
        self.blocks = nn.ModuleList(ScaleBlock(width, heads) for _ in range(layers))
        self.led = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, codes)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, inputs_BMC: Tensor, label_B: Tensor) -> Tensor:
        """Logits [B, first + M, codes] from what the M tokens after the first scale are told."""
        class_BD = self.classes(label_B)
        start_BFD = class_BD[:, None] + self.start
        x_BTD = torch.cat([start_BFD, self.words(inputs_BMC)], 1) if inputs_BMC.shape[1] else start_BFD
        t, d = x_BTD.shape[1:]
        scale_T = self.scale_of[:t]
        x_BTD = x_BTD + self.places[:, :t] + self.levels(scale_T)
        mask_TT = scale_T[:, None] >= scale_T[None]
        for block in self.blocks:
            x_BTD = block(x_BTD, class_BD, mask_TT)
        scale, shift = self.led(F.silu(class_BD))[:, None].chunk(2, 2)
        logits: Tensor = self.head(F.layer_norm(x_BTD, (d,), eps=1e-6) * (1 + scale) + shift)
        return logits.float()

"""The coupling network of Flow++ (Ho et al. 2019, sec. 3.3 and fig. 4): gated convolutions and attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.families.flow.couplings import ZeroConv


class GatedNet(nn.Module):
    """[B, inputs, H, W] to [B, outputs, H, W]; the class is added to the first features."""

    def __init__(
        self, inputs: int, outputs: int, channels: int, blocks: int, classes: int, *, heads: int, places: int
    ) -> None:
        """`heads` of attention in every block, 0 for none; `places` is the number of positions, for their
        embedding."""
        super().__init__()
        self.first = nn.Conv2d(inputs, channels, 3, 1, 1)
        self.embedding = nn.Embedding(classes, channels) if classes else None
        self.blocks = nn.ModuleList(_Block(channels, heads, places) for _ in range(blocks))
        self.last = ZeroConv(channels, outputs)

    def forward(self, x_BCHW: Tensor, label_B: Tensor) -> Tensor:
        h_BCHW = self.first(x_BCHW)
        if self.embedding is not None:
            h_BCHW = h_BCHW + self.embedding(label_B)[:, :, None, None]
        for block in self.blocks:
            h_BCHW = block(h_BCHW)
        out_BCHW: Tensor = self.last(F.elu(h_BCHW))
        return out_BCHW


class _Block(nn.Module):
    """A gated convolution and gated attention, a residual and a layer norm after each."""

    def __init__(self, channels: int, heads: int, places: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2 * channels, channels, 3, 1, 1)
        self.gate = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.norm = nn.GroupNorm(1, channels)
        self.attention = _Attention(channels, heads, places) if heads else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.norm(x_BCHW + F.glu(self.gate(both_signs(self.conv(both_signs(x_BCHW)))), dim=1))
        return x_BCHW if self.attention is None else self.attention(x_BCHW)


class _Attention(nn.Module):
    def __init__(self, channels: int, heads: int, places: int) -> None:
        super().__init__()
        self._heads = heads
        self.places = nn.Parameter(0.01 * torch.randn(places, channels))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.gate = nn.Linear(channels, 2 * channels)
        self.norm = nn.GroupNorm(1, channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BTC = x_BCHW.flatten(2).transpose(1, 2)
        qkv = self.qkv(x_BTC + self.places).unflatten(2, (3, self._heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed_BTC = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out_BTC = x_BTC + F.glu(self.gate(mixed_BTC), dim=2)
        out_BCHW: Tensor = self.norm(out_BTC.transpose(1, 2).view_as(x_BCHW))
        return out_BCHW


def both_signs(x_BCHW: Tensor) -> Tensor:
    """elu of the features and of their negatives, side by side (concat_elu; Salimans et al. 2017)."""
    return F.elu(torch.cat([x_BCHW, -x_BCHW], dim=1))

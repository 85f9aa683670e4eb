"""Self-attention over a map (SAGAN: Zhang, Goodfellow, Metaxas, Odena 2019, sec. 3), as BigGAN uses it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.layers.spectral import SpectralConv2d


class SelfAttention(nn.Module):
    """x + gamma o(softmax(q k') v): queries of an eighth of the channels; keys and values from a map of half
    the side; gamma starts at 0. All four maps have spectral norm 1 and no bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        few, half = max(1, channels // 8), max(1, channels // 2)
        self.query = SpectralConv2d(channels, few, 1, bias=False)
        self.key = SpectralConv2d(channels, few, 1, bias=False)
        self.value = SpectralConv2d(channels, half, 1, bias=False)
        self.out = SpectralConv2d(half, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        q_BCN = self.query(x_BCHW).flatten(2)
        k_BCM = F.max_pool2d(self.key(x_BCHW), 2).flatten(2)
        v_BCM = F.max_pool2d(self.value(x_BCHW), 2).flatten(2)
        weight_BNM = (q_BCN.transpose(1, 2) @ k_BCM).softmax(2)
        seen_BCHW = (v_BCM @ weight_BNM.transpose(1, 2)).unflatten(2, x_BCHW.shape[2:])
        out_BCHW: Tensor = x_BCHW + self.gamma * self.out(seen_BCHW)
        return out_BCHW

"""A map that attends to the tokens of a text (GigaGAN: Kang et al. 2023, sec. 3.2).

The pooled text modulates the generator as a whole; attention lets each place look at single words.
"""

from __future__ import annotations

from math import gcd

from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.families.gan.layers.blocks import GROUPS
from sfumato.text.states import States


class TextAttention(nn.Module):
    """x + o(softmax(q k') v), queries of the places of the map, keys and values of the tokens; padding is
    hidden. o starts at 0, so that a fresh generator ignores the words."""

    def __init__(self, channels: int, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = next(n for n in range(min(heads, channels), 0, -1) if channels % n == 0)
        self.norm = nn.GroupNorm(gcd(channels, GROUPS), channels)
        self.query = nn.Conv2d(channels, channels, 1, bias=False)
        self.key_value = nn.Linear(width, 2 * channels, bias=False)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x_BCHW: Tensor, text: States) -> Tensor:
        """[B, C, H, W] for States of B texts."""
        q_BNC = self.query(self.norm(x_BCHW)).flatten(2).transpose(1, 2)
        k_BTC, v_BTC = self.key_value(text.states.to(self.key_value.weight.dtype)).chunk(2, dim=2)
        q, k, v = (self._by_head(part) for part in (q_BNC, k_BTC, v_BTC))
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=text.mask[:, None, None, :])
        seen_BCHW = seen.transpose(2, 3).reshape(x_BCHW.shape)
        out_BCHW: Tensor = x_BCHW + self.out(seen_BCHW)
        return out_BCHW

    def _by_head(self, part_BNC: Tensor) -> Tensor:
        """[B, heads, N, channels of a head]."""
        rows, places, channels = part_BNC.shape
        return part_BNC.view(rows, places, self.heads, channels // self.heads).transpose(1, 2)

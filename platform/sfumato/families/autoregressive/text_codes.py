"""A decoder transformer over codes that stand behind a text, with a key-value cache for drawing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.families.autoregressive.drawing.draws import draw
from sfumato.families.autoregressive.drawing.reader import weight
from sfumato.families.autoregressive.layers.code_network import TransformerBlock
from sfumato.families.autoregressive.sampling import SamplingConfig
from sfumato.text.states import States, TextShape

Cache = tuple[Tensor, Tensor]
"""Keys and values of the positions so far, [B, heads, t, width / heads] each."""
Step = Callable[[Tensor, list[Cache] | None], tuple[Tensor, list[Cache]]]
"""The network on (codes [N, T], caches): logits of what follows the last code, and the caches."""


class MaskedBlock(TransformerBlock):
    """The same block where a mask says which positions are seen."""

    def forward(  # type: ignore[override]
        self, x_BTD: Tensor, mask_B1TS: Tensor, cache: Cache | None = None
    ) -> tuple[Tensor, Cache]:
        """The next features and the cache with these positions; the mask is bool, S all positions so far."""
        b, t, d = x_BTD.shape
        qkv = self.qkv(self.norm_attention(x_BTD)).view(b, t, 3, self._heads, d // self._heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if cache is not None:
            k, v = torch.cat([cache[0], k], dim=2), torch.cat([cache[1], v], dim=2)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_B1TS)
        x_BTD = x_BTD + self.out(attended.transpose(1, 2).reshape(b, t, d))
        return x_BTD + self.mlp(self.norm_mlp(x_BTD)), (k, v)


class TextCodeNetwork(nn.Module):
    """Logits of each code of a sequence given a text and the codes before it (Sun et al. 2024, sec. 3.1).

    The states of the text stand before the codes, projected to their width, and then a start token; padding
    is hidden.
    """

    def __init__(
        self, codes: int, length: int, text: TextShape, *, width: int, layers: int, heads: int
    ) -> None:
        super().__init__()
        self.prefix = nn.Linear(text.width, width)
        self.start = nn.Parameter(torch.empty(1, 1, width))
        self.codes = nn.Embedding(codes, width)
        self.positions = nn.Parameter(torch.empty(text.tokens + length, width))
        self.blocks = nn.ModuleList(MaskedBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, codes, bias=False)
        for table in (self.start, self.codes.weight, self.positions, self.head.weight):
            nn.init.normal_(table, std=0.02)

    def forward(
        self, codes_BT: Tensor, caches: list[Cache] | None, text: States
    ) -> tuple[Tensor, list[Cache]]:
        """Logits [B, T + 1, codes] of what follows the start and each of T codes, and the caches.

        With caches (of the text and T - 1 codes), the newest code alone is computed: logits [B, 1, codes].
        """
        before, t = text.states.shape[1] + 1, codes_BT.shape[1]
        if caches is None:
            start_B1D = self.start.expand(len(codes_BT), 1, -1)
            x_BTD = torch.cat([self.prefix(text.states), start_B1D, self.codes(codes_BT)], dim=1)
            x_BTD = x_BTD + self.positions[: before + t]
        else:
            at = before + t - 1
            x_BTD = self.codes(codes_BT[:, -1:]) + self.positions[at : at + 1]
        mask = _seen(F.pad(text.mask, (0, 1), value=True), t, newest=caches is not None)
        found = []
        for index, block in enumerate(self.blocks):
            x_BTD, cache = block(x_BTD, mask, None if caches is None else caches[index])
            found.append(cache)
        logits: Tensor = self.head(self.norm(x_BTD[:, -t - 1 :] if caches is None else x_BTD))
        return logits.float(), found


def _seen(mask_BP: Tensor, codes: int, *, newest: bool) -> Tensor:
    """Which positions each position sees, bool [B, 1, T, P + codes]: itself, and those before but padding.

    Of the newest one alone, if `newest`.
    """
    total = mask_BP.shape[1] + codes
    kept_BT = F.pad(mask_BP, (0, codes), value=True)
    earlier_TT = torch.ones(total, total, dtype=torch.bool, device=mask_BP.device).tril()
    itself_TT = torch.eye(total, dtype=torch.bool, device=mask_BP.device)
    seen_BTT = earlier_TT & (kept_BT[:, None, :] | itself_TT)
    return seen_BTT[:, None, -1:] if newest else seen_BTT[:, None]


def drawn(step: Step, uniform_NT: Tensor, options: SamplingConfig, *, guided: bool) -> Tensor:
    """Codes int64 [N, T], each from a uniform number, with a key-value cache.

    If `guided` (Ho & Salimans 2022), the rows of `step` are first those wanted, then as many unwanted:
    logits = unwanted + weight * (wanted - unwanted).
    """
    rows = len(uniform_NT) * (2 if guided else 1)
    codes_NT = torch.zeros(rows, 0, dtype=torch.int64, device=uniform_NT.device)
    caches: list[Cache] | None = None
    for position in range(uniform_NT.shape[1]):
        logits, caches = step(codes_NT, caches)
        logits = logits[:, -1]
        if guided:
            wanted, unwanted = logits.chunk(2)
            logits = unwanted + weight(options, position, uniform_NT.shape[1]) * (wanted - unwanted)
        chosen = draw(logits, uniform_NT[:, position], **options.limits)
        codes_NT = torch.cat([codes_NT, (torch.cat([chosen, chosen]) if guided else chosen)[:, None]], dim=1)
    return codes_NT[: len(uniform_NT)]

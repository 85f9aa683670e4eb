"""What a network of codes must be for `decoding`: causal, with a cache of keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

Cache = tuple[Tensor, Tensor]
"""Keys and values of the positions so far, [B, heads, t, width / heads] each."""


class CodeModel(Protocol):
    """Logits of each code of a sequence given its class and the codes before it."""

    def __call__(
        self, codes_BT: Tensor, label_B: Tensor, caches: Sequence[Cache] | None = None, fresh: int = 1
    ) -> tuple[Tensor, list[Cache]]:
        """Logits [B, T + 1, codes] of what follows the class token and each of T codes, and the caches.

        With caches (of the class token and T - fresh codes), only the last `fresh` codes are computed: logits
        [B, fresh, codes].
        """
        ...


def causal(fresh: int, total: int, device: torch.device) -> Tensor | None:
    """Which of `total` positions the last `fresh` ones see, bool [fresh, total]; None if all."""
    if fresh == 1:
        return None
    places = torch.arange(total, device=device)
    return places <= places[total - fresh :, None]


def shortened(caches: Sequence[Cache], length: int) -> list[Cache]:
    """The caches of the first positions alone."""
    return [(keys[:, :, :length], values[:, :, :length]) for keys, values in caches]

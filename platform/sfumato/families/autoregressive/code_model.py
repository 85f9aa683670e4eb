"""What a network of codes must be for `decoding`: causal, with a memory of keys and values."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from sfumato.families.autoregressive.drawing.memory import Memory


class CodeModel(Protocol):
    """Logits of each code of a sequence given its class and the codes before it.

    Position 0 is the class token, position t the code t - 1.
    """

    def __call__(
        self, codes_BT: Tensor, label_B: Tensor, memory: Memory | None = None, fresh: int = 1
    ) -> Tensor:
        """Logits [B, T + 1, codes] of what follows the class token and each of T codes.

        With a memory, the `fresh` positions of each row after those that it has are computed, which it then
        has too: logits [B, fresh, codes]. `codes_BT` holds the codes that these need, and may hold more.
        """
        ...


def tokens(
    classes: nn.Embedding, codes: nn.Embedding, codes_BT: Tensor, label_B: Tensor, places_BF: Tensor
) -> Tensor:
    """The vectors [B, F, D] of these positions of each row: of the class at place 0, of a code at others."""
    places_BF = places_BF.expand(len(codes_BT), -1)
    class_B1D: Tensor = classes(label_B)[:, None]
    if not codes_BT.shape[1]:
        return class_B1D.expand(-1, places_BF.shape[1], -1)
    found_BFD: Tensor = codes(codes_BT.gather(1, (places_BF - 1).clamp_min(0)))
    return torch.where(places_BF[..., None] == 0, class_B1D, found_BFD)

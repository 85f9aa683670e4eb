"""Token routing: in training, some tokens pass by the middle blocks (TREAD, Krause et al. 2025).

Of each image's tokens a random share skips the blocks from `first` to `last` and joins the others, unchanged,
behind them: less work a step, and the loss is still that of all tokens. Sampling routes none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Route:
    """The tokens of one pass that stay, [B, K] int64, each row rising."""

    stays_BK: Tensor

    @classmethod
    def draw(cls, rows: int, tokens: int, share: float, device: torch.device, always: int = 0) -> Route:
        """A random `share` of each row's tokens leaves; the first `always` stay.

        From torch's global generator, as dropout is.
        """
        keep = tokens - always - round(share * (tokens - always))
        order_BT = torch.rand(rows, tokens - always, device=device).argsort(dim=1)
        chosen_BK = order_BT[:, :keep].sort(dim=1).values + always
        first_BA = torch.arange(always, device=device).expand(rows, -1)
        return cls(torch.cat([first_BA, chosen_BK], dim=1))

    def angles(self, angles_TP: Tensor | None) -> Tensor | None:
        """Those of the tokens that stay, [B, 1, K, P]."""
        return None if angles_TP is None else angles_TP[self.stays_BK].unsqueeze(1)

    def leave(self, x_BTD: Tensor) -> Tensor:
        """The tokens that stay, [B, K, D]."""
        return x_BTD.gather(1, self._at(x_BTD))

    def join(self, x_BTD: Tensor, stayed_BKD: Tensor) -> Tensor:
        """All tokens: those that stayed as the blocks left them, the others as they were before."""
        return x_BTD.scatter(1, self._at(x_BTD), stayed_BKD.to(x_BTD.dtype))

    def _at(self, x_BTD: Tensor) -> Tensor:
        return self.stays_BK.unsqueeze(2).expand(-1, -1, x_BTD.shape[2])

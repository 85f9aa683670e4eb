"""Every noise level the same: L_simple (Ho et al. 2020, eq. 14)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from sfumato.families.diffusion.weightings import Weighting


class Plain(Weighting):
    """One."""

    kind: Literal["plain"] = Field("plain", description="Selects the unweighted loss.")

    def weight(self, snr_T: Tensor, own_T: Tensor) -> Tensor:
        """Ones."""
        return torch.ones_like(snr_T)


COMPONENT = Plain

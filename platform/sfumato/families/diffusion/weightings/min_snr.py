"""Min-SNR-gamma (Hang et al. 2023, sec. 3.4): low noise levels do not outweigh the others.

The squared error of the image counts min(SNR, gamma): that of the noise min(SNR, gamma) / SNR, and that of v
min(SNR, gamma) / (SNR + 1).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from sfumato.families.diffusion.weightings import Weighting


class MinSnr(Weighting):
    """The weight of the image's error, cut at gamma."""

    kind: Literal["min_snr"] = Field("min_snr", description="Selects min-SNR weighting.")
    gamma: float = Field(5.0, gt=0, description="Largest weight of the image's squared error.")

    def weight(self, snr_T: Tensor, own_T: Tensor) -> Tensor:
        """min(SNR, gamma), in units of the target."""
        return snr_T.clamp(max=self.gamma) / own_T


COMPONENT = MinSnr

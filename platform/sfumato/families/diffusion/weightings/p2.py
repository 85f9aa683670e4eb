"""Perception-prioritised weighting, P2 (Choi et al. 2022, eq. 8): less weight where only details are learned.

L_simple of the noise, which weights the image's squared error by the SNR, is divided by (k + SNR)^gamma.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from sfumato.families.diffusion.weightings import Weighting


class P2(Weighting):
    """SNR / (k + SNR)^gamma of the image's error."""

    kind: Literal["p2"] = Field("p2", description="Selects P2 weighting.")
    gamma: float = Field(1.0, gt=0, description="How much low noise loses; the paper recommends 0.5 to 1.")
    k: float = Field(1.0, gt=0, description="Stabiliser: keeps the weight finite at high noise.")

    def weight(self, snr_T: Tensor, own_T: Tensor) -> Tensor:
        """The paper's, in units of the target."""
        return snr_T / own_T / (self.k + snr_T) ** self.gamma


COMPONENT = P2

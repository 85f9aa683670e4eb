"""The non-saturating game (Goodfellow et al. 2014, sec. 3).

L_D = softplus(-s) + softplus(f),    L_G = softplus(-f)
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sfumato.families.gan.cross_entropy import CrossEntropy


class Nonsaturating(CrossEntropy):
    """See the top of the file."""

    kind: Literal["nonsaturating"] = Field("nonsaturating", description="Selects this loss.")

    def generator(self, f_B: Tensor) -> Tensor:
        """L_G."""
        return F.softplus(-f_B)


COMPONENT = Nonsaturating

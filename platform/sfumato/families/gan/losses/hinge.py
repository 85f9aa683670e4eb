"""The hinge game (Lim & Ye 2017).

L_D = relu(1 - s) + relu(1 + f),    L_G = -f
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sfumato.families.gan.losses import Loss


class Hinge(Loss):
    """See the top of the file."""

    kind: Literal["hinge"] = Field("hinge", description="Selects this loss.")

    def discriminator(self, s_B: Tensor, f_B: Tensor) -> Tensor:
        """L_D."""
        return F.relu(1 - s_B) + F.relu(1 + f_B)

    def generator(self, f_B: Tensor) -> Tensor:
        """L_G."""
        return -f_B


COMPONENT = Hinge

"""The Wasserstein distance by a critic (Arjovsky et al. 2017, eq. 3).

L_D = f - s,    L_G = -f
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from sfumato.families.gan.losses import Loss


class Wasserstein(Loss):
    """See the top of the file."""

    sees_bias: ClassVar[bool] = False
    needs_bound: ClassVar[bool] = True
    kind: Literal["wasserstein"] = Field("wasserstein", description="Selects this loss.")

    def discriminator(self, s_B: Tensor, f_B: Tensor) -> Tensor:
        """L_D."""
        return f_B - s_B

    def generator(self, f_B: Tensor) -> Tensor:
        """L_G."""
        return -f_B


COMPONENT = Wasserstein

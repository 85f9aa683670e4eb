"""Least squares (Mao et al. 2017, eq. 9).

L_D = (s - 1)^2 / 2 + f^2 / 2,    L_G = (f - 1)^2 / 2
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from sfumato.families.gan.losses import Loss


class LeastSquares(Loss):
    """See the top of the file."""

    kind: Literal["least_squares"] = Field("least_squares", description="Selects this loss.")

    def discriminator(self, s_B: Tensor, f_B: Tensor) -> Tensor:
        """L_D."""
        return (s_B - 1).square() / 2 + f_B.square() / 2

    def generator(self, f_B: Tensor) -> Tensor:
        """L_G."""
        return (f_B - 1).square() / 2


COMPONENT = LeastSquares

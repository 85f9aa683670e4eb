"""Relativistic pairing (Jolicoeur-Martineau 2019, sec. 4.1; R3GAN: Huang et al. 2024, eq. 2).

L_D = softplus(f - s),    L_G = softplus(s - f)

Each generated image is compared with one real image. A mode that the generator leaves out keeps its real
images ahead of every generated one, so dropping it never pays.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sfumato.families.gan.losses import Loss


class Relativistic(Loss):
    """See the top of the file."""

    sees_bias: ClassVar[bool] = False
    paired: ClassVar[bool] = True
    kind: Literal["relativistic"] = Field("relativistic", description="Selects this loss.")

    def discriminator(self, s_B: Tensor, f_B: Tensor) -> Tensor:
        """L_D."""
        return F.softplus(f_B - s_B)

    def generator(self, f_B: Tensor) -> Tensor:
        """L_G against real images of score 0."""
        return F.softplus(-f_B)

    def generator_against(self, s_B: Tensor, f_B: Tensor) -> Tensor:
        """L_G."""
        return F.softplus(s_B - f_B)


COMPONENT = Relativistic

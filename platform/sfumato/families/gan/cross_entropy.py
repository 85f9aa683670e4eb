"""The discriminator's cross-entropy (Goodfellow et al. 2014, eq. 1), with one-sided label smoothing.

    L_D = (1 - a) softplus(-s) + a softplus(s) + softplus(f)

The target of real images is 1 - a instead of 1, that of generated ones stays 0 (Salimans et al. 2016, sec.
3.4). Games that share this loss differ in the generator's.
"""

from __future__ import annotations

from abc import ABC

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sfumato.families.gan.losses import Loss


class CrossEntropy(Loss, ABC):
    """See the top of the file."""

    smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="How far the target of real images is below 1; 0.1 is usual."
    )

    def discriminator(self, s_B: Tensor, f_B: Tensor) -> Tensor:
        """L_D."""
        real_B = F.softplus(-s_B)
        if self.smoothing:
            real_B = (1 - self.smoothing) * real_B + self.smoothing * F.softplus(s_B)
        return real_B + F.softplus(f_B)

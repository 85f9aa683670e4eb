"""Consistency regularisation of the discriminator (Zhang et al. 2020; balanced: Zhao et al. 2021).

    L += lambda_real |D(x) - D(T(x))|^2 + lambda_fake |D(G(z)) - D(T(G(z)))|^2

T flips half of the images and moves each by up to an eighth of its side. Unlike an augmentation, T does not
reach the generator, so that nothing leaks into its images. Without lambda_fake this is CR, with it bCR.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from sfumato.core.config import Config
from sfumato.core.rng import Rng
from sfumato.families.gan.augmentations.diffaugment import translation


class ConsistencyConfig(Config):
    """How much."""

    real: float = Field(10.0, gt=0, description="lambda_real, the factor on real images.")
    fake: float = Field(
        10.0, ge=0, description="lambda_fake, the factor on generated images; 0 is the method of 2020."
    )
    flip: bool = Field(True, description="Whether T flips; not for images that a flip makes another class.")

    def changed(self, x_BCHW: Tensor, rng: Rng) -> Tensor:
        """T(x), [B, C, H, W]."""
        if self.flip:
            flips_B = rng.uniform() < 0.5
            x_BCHW = torch.where(flips_B[:, None, None, None], x_BCHW.flip(3), x_BCHW)
        return translation(x_BCHW, rng)

    def groups(self, real_BCHW: Tensor, fake_BCHW: Tensor, rng: Rng) -> list[Tensor]:
        """The further groups of images that the discriminator scores."""
        found = [self.changed(real_BCHW, rng)]
        return [*found, self.changed(fake_BCHW, rng)] if self.fake else found

    def penalty(self, score_B: list[Tensor], changed_B: list[Tensor]) -> Tensor:
        """The regulariser [B], from the scores of images (real, generated) and of what `groups` gave."""
        factors = (self.real, self.fake)[: len(changed_B)]
        terms = zip(factors, score_B, changed_B, strict=False)
        return torch.stack([each * (a - b).square() for each, a, b in terms]).sum(0)

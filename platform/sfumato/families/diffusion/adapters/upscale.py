"""Super-resolution (SR3, Saharia et al. 2021, sec. 2.3): the small picture, enlarged, enters beside the noisy
one. With `noise`, training adds noise to it, so that the model mends what real small pictures lack (Ho et al.
2022, sec. 4.2, conditioning augmentation with one level).

The condition is a picture of the full size, of which the network sees the mean of every factor x factor
pixels, enlarged by bicubic interpolation. So a data set needs no second column, and a small picture is given
by repeating its pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sfumato.core.batch import DataSpec
from sfumato.core.conditions import SMALL, Condition
from sfumato.families.diffusion.adapters import Look
from sfumato.families.diffusion.concatenation import ConcatenatingConfig


class UpscaleConfig(ConcatenatingConfig):
    """Enlarges pictures."""

    kind: Literal["upscale"] = Field("upscale", description="Selects super-resolution.")
    factor: int = Field(4, ge=2, le=16, description="How many times larger each side gets.")
    noise: float = Field(
        0.0, ge=0, description="Standard deviation of the noise that training adds to the small picture."
    )

    def further(self, channels: int) -> int:
        """Those of the enlarged picture, or of its latents."""
        return channels

    def conditions(self, data: DataSpec) -> tuple[Condition, ...]:
        """The picture that is to be enlarged, at full size; required."""
        return (Condition(SMALL, "image", "image", shape=data.shape, required=True),)

    def shown(self, rows: Mapping[str, Any], look: Look) -> Tensor:
        """The enlarged picture where the model works."""
        image_BCHW: Tensor = rows["image"]
        small_BChw = F.avg_pool2d(image_BCHW, self.factor)
        if self.noise and look.rng is not None:
            small_BChw = small_BChw + self.noise * look.rng.normal(*small_BChw.shape[1:])
        return look.encode(enlarged(small_BChw, self.factor))

    def data_problems(self, data: DataSpec) -> list[str]:
        """Sides that the factor does not divide."""
        return [
            f"model.adapter.factor: {self.factor} does not divide the {name} of {side}"
            for name, side in (("height", data.height), ("width", data.width))
            if side % self.factor
        ]

    @classmethod
    def tiny(cls) -> Self:
        """Twice as large, with the attention trained."""
        return cls(factor=2, train=("*attn*",))


def enlarged(small_BChw: Tensor, factor: int) -> Tensor:
    """By bicubic interpolation, in [-1, 1]."""
    found = F.interpolate(small_BChw, scale_factor=factor, mode="bicubic", align_corners=False)
    return found.clamp(-1, 1)


COMPONENT = UpscaleConfig

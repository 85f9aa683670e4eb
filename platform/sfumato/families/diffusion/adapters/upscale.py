"""Super-resolution (SR3, Saharia et al. 2021, sec. 2.3): the small picture, enlarged, enters beside the noisy
one. With `noise`, training adds noise of a random level to it, of which the network is told, so that it mends
what a model below does wrong (Ho et al. 2022, sec. 4.2; Saharia et al. 2022, sec. 2.4). With `below`,
sampling runs through a cascade: the model below draws the small pictures.

The condition is a picture of the full size, of which the network sees the mean of every factor x factor
pixels, enlarged by bicubic interpolation. So a data set needs no second column, and a small picture is given
by repeating its pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from sfumato.core.batch import DataSpec
from sfumato.core.conditions import SMALL, Condition
from sfumato.core.pretrained_model import PretrainedModel
from sfumato.families.diffusion.adapters import Look, Lower
from sfumato.families.diffusion.adapting.concatenation import ConcatenatingConfig


class UpscaleConfig(ConcatenatingConfig):
    """Enlarges pictures."""

    kind: Literal["upscale"] = Field("upscale", description="Selects super-resolution.")
    factor: int = Field(4, ge=2, le=16, description="How many times larger each side gets.")
    noise: float = Field(
        0.0,
        ge=0,
        description="The largest standard deviation of the noise that training adds to the small picture; "
        "its level is drawn for each, and one channel more tells it.",
    )
    below: PretrainedModel | None = Field(
        None,
        description="The model that draws the small pictures in sampling, where none is given: {run: base}.",
    )
    drawn_noise: float = Field(
        0.0, ge=0, description="Standard deviation of the noise that sampling adds to what `below` draws."
    )

    @model_validator(mode="after")
    def _noise_is_known(self) -> Self:
        if self.drawn_noise > self.noise:
            raise ValueError(
                f"drawn_noise: got {self.drawn_noise:g}, training knows at most noise={self.noise:g}"
            )
        if self.drawn_noise and self.below is None:
            raise ValueError("drawn_noise: has no effect without below; leave it out")
        return self

    def further(self, channels: int) -> int:
        """Those of the enlarged picture, or of its latents, and one for the level of noise."""
        return channels + bool(self.noise)

    @property
    def lower(self) -> Lower | None:
        """As `below` says."""
        return None if self.below is None else Lower(self.below, SMALL, self.factor, self.drawn_noise)

    def conditions(self, data: DataSpec) -> tuple[Condition, ...]:
        """The picture that is to be enlarged, at full size; required without a model below."""
        if self.below is None:
            return (Condition(SMALL, "image", "image", shape=data.shape, required=True),)
        # Of a column of its own: an evaluation is to draw it, not to take it from the reference.
        return (Condition(SMALL, SMALL, "image", shape=data.shape),)

    def shown(self, rows: Mapping[str, Any], look: Look) -> Tensor:
        """The enlarged picture where the model works."""
        image_BCHW: Tensor = rows["image"] if "image" in rows else rows[SMALL]
        small_BChw = F.avg_pool2d(image_BCHW, self.factor)
        level_B = torch.full((len(small_BChw),), look.noise, device=small_BChw.device)
        if self.noise and look.rng is not None:
            level_B = self.noise * look.rng.uniform()
            small_BChw = small_BChw + level_B.view(-1, 1, 1, 1) * look.rng.normal(*small_BChw.shape[1:])
        shown_BCHW = look.encode(enlarged(small_BChw, self.factor))
        if not self.noise:
            return shown_BCHW
        told_B1HW = (level_B / self.noise).view(-1, 1, 1, 1).expand(-1, 1, *shown_BCHW.shape[2:])
        return torch.cat([shown_BCHW, told_B1HW.to(shown_BCHW.dtype)], dim=1)

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

"""Zero-centred penalties on the discriminator's slope, (gamma / 2) |grad D(x)|^2, at chosen images x.

Penalties differ in the images: real ones (R1), generated ones (R2), points between the two. By itself a
penalty is a phase, lazy or not. With `joined` it is a part of the discriminator's own loss, as in R3GAN, and
costs no step of Adam.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from sfumato.core.rng import Rng
from sfumato.families.gan.gradients import (
    difference_points,
    difference_square,
    exact_points,
    exact_square,
    r1_exact,
    r1_finite_difference,
)
from sfumato.families.gan.penalties import Penalty, PenaltySchedule


class SlopeConfig(PenaltySchedule):
    """How the slope is found and penalised."""

    weight: float = Field(1.0, gt=0, description="gamma of (gamma / 2) E |grad D(x)|^2.")
    estimator: Literal["exact", "finite_difference"] = Field(
        "exact",
        description="exact differentiates twice; finite_difference takes the slope along a random direction, "
        "which every parallel.strategy can.",
    )
    step: float = Field(
        0.01, gt=0, le=1, description="Half the distance of the two points of a finite difference."
    )
    joined: bool = Field(
        False,
        exclude_if=lambda value: not value,
        description="Whether it is a part of the discriminator's own loss, instead of a step of its own; "
        "needs every=1.",
    )

    @model_validator(mode="after")
    def _settings_have_effect(self) -> Self:
        # Compare values, here and elsewhere: a stored configuration has every field set.
        if self.estimator == "exact" and self.step != type(self).model_fields["step"].default:
            raise ValueError(
                f"step: {self.step:g} has no effect on estimator=exact; leave it out, or set "
                "estimator=finite_difference"
            )
        if self.joined and self.every != 1:
            raise ValueError(f"joined: it is computed in every step, but every={self.every}; set every=1")
        return self


class SlopePenalty(Penalty, SlopeConfig, ABC):
    """(gamma / 2) |grad D(x)|^2."""

    @property
    def second_order(self) -> bool:
        """Unless it is estimated."""
        return self.estimator == "exact"

    @property
    def float32(self) -> bool:
        """If it is a difference of scores, which bfloat16 would round away."""
        return self.estimator == "finite_difference"

    @property
    def factor(self) -> float:
        """gamma / 2, times the steps that it represents (Karras et al. 2020, app. B)."""
        return self.every * self.weight / 2

    def penalty(
        self, discriminator: nn.Module, image_BCHW: Tensor, label_B: Tensor, rng: Rng
    ) -> tuple[Tensor, Tensor]:
        """|grad D|^2 [B], and the scores [B]."""
        if self.estimator == "exact":
            return r1_exact(discriminator, image_BCHW, label_B)
        return r1_finite_difference(discriminator, image_BCHW, label_B, rng, step=self.step)

    def points(self, image_BCHW: Tensor, rng: Rng) -> list[Tensor]:
        """The images that a discriminator must score; the exact slope's is the image itself."""
        if self.estimator == "exact":
            return exact_points(image_BCHW)
        return difference_points(image_BCHW, rng, step=self.step)

    def square(self, scores: Sequence[Tensor], points: Sequence[Tensor]) -> Tensor:
        """|grad D|^2 [B] from the scores of these points."""
        if self.estimator == "exact":
            return exact_square(scores, points)
        return difference_square(scores, step=self.step)

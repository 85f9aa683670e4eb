"""R1, the zero-centred gradient penalty on real images (Mescheder et al. 2018): see `gradients.py`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from sfumato.core.rng import Rng
from sfumato.families.gan.gradients import r1_exact, r1_finite_difference
from sfumato.families.gan.penalties import Penalty, PenaltySchedule


class R1Config(PenaltySchedule):
    """The zero-centred gradient penalty on real images (Mescheder, Geiger, Nowozin 2018)."""

    weight: float = Field(1.0, gt=0, description="gamma of (gamma / 2) E |grad D(x)|^2.")
    estimator: Literal["exact", "finite_difference"] = Field(
        "exact",
        description="exact differentiates twice; finite_difference takes the slope along a random direction, "
        "which every parallel.strategy can.",
    )
    step: float = Field(
        0.01, gt=0, le=1, description="Half the distance of the two points of a finite difference."
    )

    @model_validator(mode="after")
    def _step_has_effect(self) -> Self:
        # Compare values, here and elsewhere: a stored configuration has every field set.
        if self.estimator == "exact" and self.step != type(self).model_fields["step"].default:
            raise ValueError(
                f"step: {self.step:g} has no effect on estimator=exact; leave it out, or set "
                "estimator=finite_difference"
            )
        return self


class R1(Penalty, R1Config):
    """(gamma / 2) R1."""

    kind: Literal["r1"] = Field("r1", description="Selects R1.")

    @classmethod
    def of(cls, settings: R1Config) -> R1:
        """The penalty of these settings."""
        return cls(**settings.model_dump())

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
        self, discriminator: nn.Module, real_BCHW: Tensor, label_B: Tensor, rng: Rng
    ) -> tuple[Tensor, Tensor]:
        """R1 [B], and the scores [B]."""
        if self.estimator == "exact":
            return r1_exact(discriminator, real_BCHW, label_B)
        return r1_finite_difference(discriminator, real_BCHW, label_B, rng, step=self.step)


COMPONENT = R1

"""Penalties on the discriminator that are separate phases with their own intervals.

A file here is a penalty. `objective.penalties` lists those of a recipe; `objective.r1` is a shorter way to
say the one of kind `r1`. (The gradient penalty between real and generated images is a part of the
discriminator's own step.)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from sfumato.core.components import Component, Components
from sfumato.core.config import Config
from sfumato.core.rng import Rng

Place = Literal["real", "generated", "mixed"]
"""Real images, generated ones of the same classes, or random points on the lines between the two."""


class PenaltySchedule(Config):
    """How much and how often."""

    weight: float = Field(1.0, gt=0, description="Factor of the penalty.")
    every: int = Field(
        16,
        ge=1,
        description="Steps between two penalties, each of which counts as many times (lazy regularisation, "
        "Karras et al. 2020).",
    )


class Penalty(Component, PenaltySchedule, ABC):
    """A penalty on the scores of images, real ones unless `place` says otherwise."""

    place: ClassVar[Place] = "real"

    @property
    def second_order(self) -> bool:
        """Whether it differentiates through a gradient."""
        return False

    @property
    def float32(self) -> bool:
        """Whether it calls the discriminator without autocast."""
        return False

    @property
    def factor(self) -> float:
        """The penalty's factor in the loss of a step: the weight, times the steps that it represents."""
        return self.every * self.weight

    @abstractmethod
    def penalty(
        self, discriminator: nn.Module, image_BCHW: Tensor, label_B: Tensor, rng: Rng
    ) -> tuple[Tensor, Tensor]:
        """The penalty [B] before its weight, and scores [B] that all parameters have a part in."""


PENALTIES: Components[Penalty] = Components("sfumato.families.gan.penalties", Penalty, default="r1")

"""The `model:` part of a recipe for the signature family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field

from sfumato.core.batch import DataSpec
from sfumato.core.config import Config
from sfumato.core.family import Family, FamilyConfig
from sfumato.core.optimizer import OptimizerConfig
from sfumato.core.schedules import EmaSchedule, LearningRate
from sfumato.core.stored import StageSpec
from sfumato.families.signature.objectives import OBJECTIVES, ObjectiveConfig, Training
from sfumato.families.signature.objectives.hidden import HiddenConfig


class SamplingConfig(Config):
    """None of its models draws images."""


class SignatureConfig(FamilyConfig):
    """Networks that sign pictures: extractors of messages, and first stages whose decoder signs."""

    family: Literal["signature"] = Field("signature", description="Selects this family.")
    objective: Annotated[ObjectiveConfig, OBJECTIVES] = Field(
        HiddenConfig(),
        description="hidden: an extractor of messages; stable_signature: a decoder that signs.",
    )
    optimizer: OptimizerConfig = Field(
        OptimizerConfig(lr=LearningRate(peak=1e-3, warmup_images=2_000, decay="cosine")),
        description="How the network is trained.",
    )
    ema: EmaSchedule = Field(
        EmaSchedule(halflife_images=2_000), description="Average of the weights, used after training."
    )
    sampling: SamplingConfig = Field(SamplingConfig(), description="No options.")

    def build(self, data: DataSpec) -> Family:
        """Build the family for images of this kind."""
        return self.objective.build(Training(self.optimizer, self.ema), data)

    def samples(self, data: DataSpec) -> bool:
        """It only reconstructs."""
        return False

    def as_first_stage(self, data: DataSpec) -> StageSpec | None:
        """One whose decoder signs."""
        return self.objective.stage(data)

    @classmethod
    def tiny(cls) -> Self:
        """The smallest extractor."""
        return cls(objective=HiddenConfig.tiny())

    @classmethod
    def variants(cls) -> Mapping[str, Self]:
        """Every objective."""
        found = {
            name: cls(objective=kind.tiny()) for name, kind in OBJECTIVES.all().items() if name != "hidden"
        }
        return {"tiny": cls.tiny(), **found}

    def problems(self, data: DataSpec) -> list[str]:
        """Those of the objective."""
        return self.objective.problems(data)

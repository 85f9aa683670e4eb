"""Phases that start late and stop early: one network drafts, a second one learns to mend what it leaves.

`draft` trains until 448 images. From 256 on, `refine` trains on what the draft leaves of the image, on two
batches a step. A model that was trained for less samples by its draft alone: `sample` knows the progress.

    model: {family: "late_phase:LatePhaseConfig", refine_from: 10000, draft_until: 50000}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.config import Config
from sfumato.core.family import EmaOf, FamilyConfig, LossOut, Nets, NetSpec, Phase, SampleRequest, Trainable
from sfumato.core.optimizer import OptimizerConfig
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.core.schedules import LearningRate


class LatePhaseConfig(FamilyConfig):
    """Restores images from noise in one step, and then mends them in another."""

    family: Literal["late_phase:LatePhaseConfig"] = Field(
        "late_phase:LatePhaseConfig", description="This family."
    )
    refine_from: int = Field(256, ge=0, description="Images at which the second network starts.")
    draft_until: int = Field(448, ge=1, description="Images at which the first network stops.")
    optimizer: OptimizerConfig = Field(
        OptimizerConfig(lr=LearningRate(peak=0.01)), description="How both are trained."
    )
    sampling: Config = Field(Config(), description="Nothing to choose.")

    def build(self, data: DataSpec) -> LatePhase:
        return LatePhase(self, data)

    @classmethod
    def tiny(cls) -> LatePhaseConfig:
        return cls()


class LatePhase:
    """Implements `core.family.Family`."""

    samplers: Sequence[str] = ("draft_ema", "refine")

    def __init__(self, config: LatePhaseConfig, data: DataSpec) -> None:
        self._refine_from, self._shape = config.refine_from, data.shape
        net = Trainable(
            build=lambda: nn.Conv2d(data.channels, data.channels, 5, padding=2), optimizer=config.optimizer
        )
        self.nets: Mapping[str, NetSpec] = {
            "draft": net,
            "refine": net,
            "draft_ema": EmaOf(source="draft", decay=lambda progress: 0.9),
        }
        self.phases: Sequence[Phase] = (
            Phase(name="draft", trains="draft", loss=self._draft, stop_images=config.draft_until),
            Phase(
                name="refine",
                trains="refine",
                loss=self._refine,
                start_images=config.refine_from,
                repeats=2,
            ),
        )

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        return {**batch, "noisy": batch["image"] + rng.normal(*self._shape)}

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        draft: Tensor = nets["draft_ema"](rng.normal(*self._shape))
        image: Tensor = draft + nets["refine"](draft) if progress.images > self._refine_from else draft
        return image.clamp(-1, 1)

    def _draft(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        return LossOut(_square(nets["draft"](batch["noisy"]) - batch["image"]))

    def _refine(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        draft = nets["draft"](batch["noisy"])
        return LossOut(_square(draft + nets["refine"](draft) - batch["image"]))


def _square(difference: Tensor) -> Tensor:
    """[B]."""
    return difference.square().flatten(1).mean(dim=1)

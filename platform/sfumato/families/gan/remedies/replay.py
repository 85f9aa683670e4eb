"""Generative replay against forgetting (Shin, Lee, Kim, Kim 2017; Wu et al. 2018, MeRGAN's joint retraining).

While a model is trained on some classes alone (`data.curriculum`), it forgets the others. With replay, the
generator as it was at the end of a stage is kept, and a share of the rows of every batch are its images of
the classes of earlier stages, in the place of real ones.

The earlier self is an average of the generator that follows it where a stage begins and nowhere else, so that
checkpoints hold it and every strategy shards it.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from sfumato.core.batch import Batch
from sfumato.core.config import Config
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng

EARLIER = "earlier"
"""The network that is kept."""


class ReplayStage(Config):
    """From when on which classes are replayed."""

    images: int = Field(
        gt=0,
        description="Training images at which the generator is kept, the end of a stage of data.curriculum.",
    )
    classes: tuple[int, ...] = Field(
        min_length=1, description="Numbers of the classes that it draws from then on: those it has learnt."
    )


class ReplayConfig(Config):
    """How much is replayed, and when."""

    share: float = Field(
        0.5, gt=0, lt=1, description="The probability that a row is replayed, once there is an earlier self."
    )
    stages: tuple[ReplayStage, ...] = Field(
        description="From when on which classes: [{images: 10_000, classes: [0, 1]}].", min_length=1
    )

    @model_validator(mode="after")
    def _in_order(self) -> ReplayConfig:
        images = [stage.images for stage in self.stages]
        if sorted(set(images)) != images:
            raise ValueError(f"stages come in the order of their images, got {images}")
        return self

    def stage(self, progress: Progress) -> ReplayStage | None:
        """The stage of a step that starts at `progress`; None before the first."""
        begun = [stage for stage in self.stages if stage.images <= progress.images]
        return begun[-1] if begun else None

    def decay(self, progress: Progress) -> float:
        """Of the earlier self, after a step that ended at `progress`: 0 if a stage has just begun."""
        before = progress.images - progress.batch
        return 0.0 if any(before < stage.images <= progress.images for stage in self.stages) else 1.0


def replayed(
    config: ReplayConfig,
    earlier: nn.Module,
    batch: Batch,
    latent: int,
    rng: Rng,
    progress: Progress,
    **shown: Any,
) -> Batch:
    """The batch, in which a share of the rows are images of the earlier self, with classes of its own.

    `shown` are further inputs of the generator.
    """
    stage = config.stage(progress)
    if stage is None:
        return batch
    image_BCHW, label_B = batch["image"], batch["label"]
    again_B = rng.uniform() < config.share
    classes_K = torch.tensor(stage.classes, device=label_B.device, dtype=label_B.dtype)
    drawn_B = torch.where(again_B, classes_K[rng.integers(len(classes_K))], label_B)
    with torch.no_grad():
        made_BCHW: Tensor = earlier(rng.normal(latent), drawn_B, **shown)
    mixed_BCHW = torch.where(again_B[:, None, None, None], made_BCHW.to(image_BCHW).clamp(-1, 1), image_BCHW)
    return {**batch, "image": mixed_BCHW, "label": drawn_B}

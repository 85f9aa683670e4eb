"""Learning rate and EMA decay as functions of images seen, so that they survive a change of batch size."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from sfumato.core.config import Config
from sfumato.core.progress import Progress


class LearningRate(Config):
    """Learning rate against images seen: linear warm-up, then constant or decayed to zero."""

    peak: float = Field(1e-3, gt=0, description="Learning rate after warm-up.")
    warmup_images: int = Field(0, ge=0, description="Images over which the rate rises linearly from zero.")
    decay: Literal["constant", "cosine", "linear"] = Field(
        "constant", description="How the rate falls from its peak to zero at the end of training."
    )

    def at(self, progress: Progress) -> float:
        """The rate for the step that starts at `progress`; never zero on the first step."""
        seen = progress.images + progress.batch
        if seen < self.warmup_images:
            return self.peak * seen / self.warmup_images
        span = max(1, progress.total_images - self.warmup_images)
        done = min(1.0, max(0, progress.images - self.warmup_images) / span)
        if self.decay == "cosine":
            return self.peak * 0.5 * (1 + math.cos(math.pi * done))
        if self.decay == "linear":
            return self.peak * (1 - done)
        return self.peak


class EmaSchedule(Config):
    """Exponential moving average by half-life in images (Karras et al. 2022, App. F.2; StyleGAN2-ADA)."""

    halflife_images: int = Field(
        10_000, gt=0, description="Images after which a past weight counts for half."
    )
    rampup: float | None = Field(
        0.1,
        gt=0,
        description="The half-life is at most this fraction of the images seen, so that early weights "
        "are forgotten quickly; null turns the ramp off.",
    )

    def decay(self, progress: Progress) -> float:
        """Weight of the old average for the step that ended at `progress`, in [0, 1)."""
        halflife = float(self.halflife_images)
        if self.rampup is not None:
            halflife = min(halflife, progress.images * self.rampup)
        return math.pow(0.5, progress.batch / max(halflife, 1e-8))

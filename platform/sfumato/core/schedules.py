"""Learning rate and EMA decay as functions of images seen, so that they survive a change of batch size."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from sfumato.core.config import Config
from sfumato.core.progress import Progress

MAX_SIGMA_REL = 1 / math.sqrt(12)
"""Relative width of the plain mean of all weights, gamma = 0."""


class LearningRate(Config):
    """Learning rate against images seen: linear warm-up, then constant or decayed."""

    peak: float = Field(1e-3, gt=0, description="Learning rate after warm-up.")
    warmup_images: int = Field(0, ge=0, description="Images over which the rate rises linearly from zero.")
    decay: Literal["constant", "cosine", "linear", "inverse_sqrt"] = Field(
        "constant",
        description="How the rate falls from its peak to zero at the end of training; inverse_sqrt: with the "
        "square root of the images seen, from the end of warm-up and `hold` on (EDM2's, Karras et al. 2024, "
        "eq. 67), which does not reach zero.",
    )

    hold: float = Field(
        0.0,
        ge=0,
        lt=1,
        exclude_if=lambda value: not value,
        description="The share of the training after warm-up in which the rate stays at its peak before it "
        "falls.",
    )

    def at(self, progress: Progress) -> float:
        """The rate for the step that starts at `progress`; never zero on the first step."""
        seen = progress.images + progress.batch
        if seen < self.warmup_images:
            return self.peak * seen / self.warmup_images
        span = max(1, progress.total_images - self.warmup_images)
        done = min(1.0, max(0, progress.images - self.warmup_images) / span)
        done = max(0.0, done - self.hold) / (1 - self.hold)
        if self.decay == "inverse_sqrt":
            start = max(progress.batch, self.warmup_images + self.hold * span)
            return self.peak * math.sqrt(start / max(start, progress.images))
        if self.decay == "cosine":
            return self.peak * 0.5 * (1 + math.cos(math.pi * done))
        if self.decay == "linear":
            return self.peak * (1 - done)
        return self.peak


class EmaSchedule(Config):
    """Exponential moving average by half-life in images (Karras et al. 2022, App. F.2; StyleGAN2-ADA), or the
    power-function average of Karras et al. 2023 (EDM2, sec. 3), whose length grows with training."""

    halflife_images: int = Field(
        10_000, gt=0, description="Images after which a past weight counts for half."
    )
    rampup: float | None = Field(
        0.1,
        gt=0,
        description="The half-life is at most this fraction of the images seen, so that early weights "
        "are forgotten quickly; null turns the ramp off.",
    )
    sigma_rel: float | None = Field(
        None,
        gt=0,
        lt=MAX_SIGMA_REL,
        description="Relative width of a power-function average, for example 0.1; if set, it replaces "
        "half-life and ramp.",
    )

    def decay(self, progress: Progress) -> float:
        """Weight of the old average for the step that ended at `progress`, in [0, 1)."""
        if self.sigma_rel is not None:
            return power_decay(self.sigma_rel, progress)
        halflife = float(self.halflife_images)
        if self.rampup is not None:
            halflife = min(halflife, progress.images * self.rampup)
        return math.pow(0.5, progress.batch / max(halflife, 1e-8))


def power_exponent(sigma_rel: float) -> float:
    """Gamma of the power-function average of that relative width: the root of sigma_rel^2 (gamma + 2)^2
    (gamma + 3) = gamma + 1 (EDM2, eq. 126; as a cubic in its code).

    Raises ValueError for widths outside (0, 0.289), which no average with positive weights has.
    """
    if not 0 < sigma_rel < MAX_SIGMA_REL:
        raise ValueError(f"sigma_rel is between 0 and {MAX_SIGMA_REL:.3f}, got {sigma_rel:g}")

    def width(gamma: float) -> float:
        return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)

    low, high = 0.0, 1.0
    while width(high) > sigma_rel:  # it falls with gamma
        high *= 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if width(middle) > sigma_rel else (low, middle)
    return (low + high) / 2


def power_decay(sigma_rel: float, progress: Progress) -> float:
    """Weight of the old average for the step that ended at `progress` (EDM2, eq. 127); the first is 0."""
    return math.pow(1 - progress.batch / progress.images, power_exponent(sigma_rel) + 1)

"""Retrieval: whether a caption finds the sample that was drawn for it among samples for other captions.

R-precision of Xu et al. 2018 (AttnGAN, sec. 4.1) with one candidate that is right and 99 that are not, by
features that bring texts into the space of images. A sample whose caption is the same text is as right.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from sfumato.core.config import Config
from sfumato.errors import DataError
from sfumato.evaluation.metric_inputs import Captions
from sfumato.evaluation.metrics.metric import (
    BaseMetric,
    FeatureSet,
    Metric,
    MetricOptions,
    MetricResult,
    Topic,
)
from sfumato.evaluation.retrieval_ranks import ranks


class RetrievalSettings(Config):
    """Settings of `retrieval` and `retrieval_5`."""

    retrieval_pool: int = Field(
        100, ge=2, description="Samples among which a caption is to find its own; figures depend on it."
    )


class Retrieval(BaseMetric):
    """Share of the captions whose own sample is among the `top` that fit them best, 0 to 1; higher is better.

    `details` give the share for real images with their captions, if the reference has any, and what chance
    gives.
    """

    higher_is_better = True
    topic: Topic = "alignment"
    inputs = (Captions(),)
    only_features: tuple[str, ...] = ("contrastive", "clip")
    Settings = RetrievalSettings

    def __init__(self, top: int) -> None:
        self._top = top
        self.name = "retrieval" if top == 1 else f"retrieval_{top}"

    def least_samples(self, options: MetricOptions) -> int:
        """One pool."""
        return options.of(RetrievalSettings).retrieval_pool

    def compute(self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> MetricResult:
        if generated.text_ND is None:
            raise DataError(f"{self.name} needs images with captions: leave it out of evaluate.metrics")
        pool = options.of(RetrievalSettings).retrieval_pool
        hit_N = ranks(generated.embedding_ND, generated.text_ND, pool) < self._top
        details: dict[str, object] = {"pool": pool, "by_chance": self._top / pool}
        if reference.text_ND is not None:
            rows = len(reference.text_ND)
            real_N = ranks(reference.embedding_ND[:rows], reference.text_ND, pool) < self._top
            details |= {"of_real_images": float(real_N.mean()), "real_images": rows}
        return MetricResult(self.name, float(hit_N.mean()), details, hit_N.astype(np.float64))


METRICS: tuple[Metric, ...] = (Retrieval(1), Retrieval(5))

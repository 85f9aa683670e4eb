"""CLIPScore (Hessel et al. 2021, eq. 1): how well an image fits its caption, w * max(cos(image, caption), 0).

w is 100, as in common use (torchmetrics and the text-to-image literature); the paper has 2.5.
"""

from __future__ import annotations

import numpy as np

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
from sfumato.evaluation.statistics import Float32Array, Float64Array

WEIGHT = 100.0


def clip_scores(image_ND: Float32Array, text_ND: Float32Array) -> Float64Array:
    """The score of each pair [N], in [0, 100]; embeddings of any length."""
    image, text = image_ND.astype(np.float64), text_ND.astype(np.float64)
    cosine_N = (image * text).sum(1) / (np.linalg.norm(image, axis=1) * np.linalg.norm(text, axis=1))
    score_N: Float64Array = WEIGHT * np.maximum(cosine_N, 0)
    return score_N


class ClipScore(BaseMetric):
    """Mean over the samples, in [0, 100]; higher is better.

    `details` give the score of real images with their captions, if the reference has any.
    """

    name = "clip_score"
    higher_is_better = True
    topic: Topic = "alignment"
    inputs = (Captions(),)
    only_features: tuple[str, ...] = ("clip",)

    def compute(self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> MetricResult:
        if generated.text_ND is None:
            raise DataError(f"{self.name} needs images with captions: leave it out of evaluate.metrics")
        score_N = clip_scores(generated.embedding_ND, generated.text_ND)
        details: dict[str, object] = {"weight": WEIGHT}
        if reference.text_ND is not None:
            rows = len(reference.text_ND)
            real_N = clip_scores(reference.embedding_ND[:rows], reference.text_ND)
            details |= {"of_real_images": float(real_N.mean()), "real_images": rows}
        return MetricResult(self.name, float(score_N.mean()), details, score_N)


METRICS: tuple[Metric, ...] = (ClipScore(),)

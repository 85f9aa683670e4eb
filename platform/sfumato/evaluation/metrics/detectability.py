"""Detectability: how well a classifier of features tells the samples from real images.

A classifier two-sample test (Lopez-Paz & Oquab 2017) with the area under the ROC curve in place of the
accuracy, which needs no equal sizes. Logistic regression on standardised features is trained on four fifths
of both sets and scores the rest, five times. 0.5: it cannot tell them apart; 1: it never errs. A training
set as the reference favours a model that repeats it. `sfumato detector` trains networks on pixels instead,
and across families.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from sfumato.core.config import Config
from sfumato.core.seeds import derive
from sfumato.evaluation.intervals.roc import area
from sfumato.evaluation.intervals.standard_errors import StandardError
from sfumato.evaluation.metrics.metric import (
    BaseMetric,
    FeatureSet,
    Metric,
    MetricOptions,
    MetricResult,
    Topic,
)
from sfumato.evaluation.statistics import Float32Array, Float64Array

FOLDS = 5


class DetectabilitySettings(Config):
    """Its classifier."""

    detectability_penalty: float = Field(
        1.0, gt=0, description="detectability: inverse strength of the classifier's L2 penalty (C)."
    )


def held_out_scores(
    real_ND: Float32Array, made_MD: Float32Array, *, penalty: float, seed: int
) -> tuple[Float64Array, Float64Array]:
    """Log odds of being made, of the real [N] and the made [M], each by a classifier that has not seen it."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(derive(seed, "detectability"))
    folds = [rng.permutation(len(x)) % FOLDS for x in (real_ND, made_MD)]
    scores = [np.empty(len(real_ND)), np.empty(len(made_MD))]
    for fold in range(FOLDS):
        parts = [x[held != fold] for x, held in zip((real_ND, made_MD), folds, strict=True)]
        scaler = StandardScaler().fit(np.concatenate(parts).astype(np.float64))
        kinds = np.repeat([0, 1], [len(part) for part in parts])
        classifier = LogisticRegression(C=penalty, class_weight="balanced", max_iter=1_000)
        classifier.fit(scaler.transform(np.concatenate(parts)), kinds)
        for x, held, score in zip((real_ND, made_MD), folds, scores, strict=True):
            score[held == fold] = classifier.decision_function(scaler.transform(x[held == fold]))
    return scores[0], scores[1]


class Detectability(BaseMetric):
    """AUROC between samples and real images, 0.5 to 1; lower is better."""

    Settings = DetectabilitySettings
    name = "detectability"
    topic: Topic = "detection"

    def least_samples(self, options: MetricOptions) -> int:
        """Some for every fold."""
        return 10 * FOLDS

    def compute(self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> MetricResult:
        real_N, made_M = held_out_scores(
            reference.embedding_ND,
            generated.embedding_ND,
            penalty=options.of(DetectabilitySettings).detectability_penalty,
            seed=options.settings.seed,
        )
        found = area(made_M, real_N)
        error = StandardError(found.stderr, "DeLong (1988)", low=0.0, high=1.0)
        details = {"real": found.negatives, "samples": found.positives, "folds": FOLDS}
        return MetricResult(self.name, found.value, details, error=lambda: error)


METRICS: tuple[Metric, ...] = (Detectability(),)

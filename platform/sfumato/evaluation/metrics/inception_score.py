"""Inception Score (Salimans et al. 2016, section 4): exp E_x KL(p(y|x) || p(y)).

High when every sample belongs to a class clearly and all classes occur. It never looks at the reference: a
model that repeats one good image per class gets a perfect score. On the logits of `inception` without their
bias this is the published score; on another classifier it is `inception_score_<features>`.

The samples are shuffled and split into parts as in torch-fidelity; the figure is the mean over parts.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from sfumato.core.config import Config
from sfumato.errors import DataError
from sfumato.evaluation.metrics.metric import BaseMetric, FeatureSet, Metric, MetricOptions, MetricResult
from sfumato.evaluation.statistics import Float32Array, Float64Array


class InceptionScoreSettings(Config):
    """Parts."""

    inception_score_splits: int = Field(
        10, ge=1, description="inception_score: number of parts that the score is averaged over."
    )


def inception_scores(logits_NK: Float32Array, splits: int, seed: int) -> Float64Array:
    """The score of each part [splits], in [1, K]. Raises ValueError for fewer samples than parts."""
    rows = len(logits_NK)
    if rows < splits:
        raise ValueError(f"{splits} parts need {splits} samples or more, got {rows}")
    # NumPy's old generator: the order, and so the figure, is then torch-fidelity's.
    order_N = np.random.RandomState(seed).permutation(rows)
    import scipy.special  # here: reading a recipe imports this module

    log_p_NK = scipy.special.log_softmax(logits_NK[order_N].astype(np.float64), axis=1)
    p_NK = np.exp(log_p_NK)
    scores = []
    for part in range(splits):
        rows_P = slice(part * rows // splits, (part + 1) * rows // splits)
        marginal_K = p_NK[rows_P].mean(axis=0)
        divergence_P = (p_NK[rows_P] * (log_p_NK[rows_P] - np.log(marginal_K))).sum(axis=1)
        scores.append(np.exp(divergence_P.mean()))
    return np.array(scores)


class InceptionScore(BaseMetric):
    """Higher is better, from 1 to the number of classes."""

    Settings = InceptionScoreSettings
    name = "inception_score"
    higher_is_better = True
    needs_any_logits = True
    always_suffixed = True
    published: str | None = "inception_score"

    def least_samples(self, options: MetricOptions) -> int:
        """One a part."""
        return options.of(InceptionScoreSettings).inception_score_splits

    def compute(self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> MetricResult:
        if generated.logits_NK is None:
            raise DataError("inception_score needs features that classify, got no logits")
        splits = options.of(InceptionScoreSettings).inception_score_splits
        score_S = inception_scores(generated.logits_NK, splits, options.settings.seed)
        details = {"splits": splits, "split_std": float(score_S.std())}
        return MetricResult(
            self.name, float(score_S.mean()), details, error=float(score_S.std()) / splits**0.5
        )


METRICS: tuple[Metric, ...] = (InceptionScore(),)

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
from sfumato.evaluation.intervals.standard_errors import StandardError
from sfumato.evaluation.metrics.metric import BaseMetric, FeatureSet, Metric, MetricOptions, MetricResult
from sfumato.evaluation.statistics import Float32Array, Float64Array, Int64Array


class InceptionScoreSettings(Config):
    """Parts."""

    inception_score_splits: int = Field(
        10, ge=1, description="inception_score: number of parts that the score is averaged over."
    )


def _parts(rows: int, splits: int, seed: int) -> list[Int64Array]:
    """The rows of each part. Raises ValueError for fewer samples than parts."""
    if rows < splits:
        raise ValueError(f"{splits} parts need {splits} samples or more, got {rows}")
    # NumPy's old generator: the order, and so the figure, is then torch-fidelity's.
    order_N = np.random.RandomState(seed).permutation(rows)
    return [order_N[part * rows // splits : (part + 1) * rows // splits] for part in range(splits)]


def _log_probabilities(logits_PK: Float32Array) -> Float64Array:
    import scipy.special  # here: reading a recipe imports this module

    log_p_PK: Float64Array = scipy.special.log_softmax(logits_PK.astype(np.float64), axis=1)
    return log_p_PK


def inception_scores(logits_NK: Float32Array, splits: int, seed: int) -> Float64Array:
    """The score of each part [splits], in [1, K]. Raises ValueError for fewer samples than parts."""
    scores = []
    for rows_P in _parts(len(logits_NK), splits, seed):
        log_p_PK = _log_probabilities(logits_NK[rows_P])
        p_PK = np.exp(log_p_PK)
        divergence_P = (p_PK * (log_p_PK - np.log(p_PK.mean(axis=0)))).sum(axis=1)
        scores.append(np.exp(divergence_P.mean()))
    return np.array(scores)


def inception_score_error(
    logits_NK: Float32Array, splits: int, seed: int, label_N: Int64Array | None = None
) -> StandardError | None:
    """Of the mean over parts: the delete-one jackknife within each part.

    With labels, whose numbers are not random, only the spread within a class counts. None for parts of one
    sample, and for samples that are all alike.
    """
    parts = _parts(len(logits_NK), splits, seed)
    if min(map(len, parts)) < 2:
        return None
    deviation_N = np.empty(len(logits_NK))
    for rows_P in parts:
        without_P, size = _scores_without(logits_NK[rows_P]), len(rows_P)
        deviation_N[rows_P] = (without_P - without_P.mean()) * ((size - 1) / size) ** 0.5 / splits
    freedom = len(logits_NK) - splits
    for label in () if label_N is None else np.unique(label_N):
        deviation_N[label_N == label] -= deviation_N[label_N == label].mean()
        freedom -= 1
    error = float(np.square(deviation_N).sum() ** 0.5)
    if not error:
        return None
    return StandardError(error, "jackknife over samples", max(1, freedom), low=1, deviation_P=deviation_N)


def _scores_without(logits_PK: Float32Array) -> Float64Array:
    """The score of a part without each of its samples [P]."""
    import scipy.special  # here: reading a recipe imports this module

    log_p_PK = _log_probabilities(logits_PK)
    p_PK = np.exp(log_p_PK)
    negative_entropy_P, others = (p_PK * log_p_PK).sum(axis=1), len(p_PK) - 1
    marginal_PK = np.maximum(p_PK.sum(axis=0) - p_PK, 0) / others
    marginal_entropy_P = -scipy.special.xlogy(marginal_PK, marginal_PK).sum(axis=1)
    score_P: Float64Array = np.exp(
        (negative_entropy_P.sum() - negative_entropy_P) / others + marginal_entropy_P
    )
    return score_P


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

        def error() -> StandardError | None:
            assert generated.logits_NK is not None
            return inception_score_error(
                generated.logits_NK, splits, options.settings.seed, generated.label_N
            )

        return MetricResult(self.name, float(score_S.mean()), details, error=error)


METRICS: tuple[Metric, ...] = (InceptionScore(),)

"""Realism score of a single sample (Kynkäänniemi et al. 2019, eq. 3), for choosing and sorting pictures.

    R(g) = max over reference vectors r of  NND_k(r) / |g - r|

taken over the half of the reference whose balls are smaller than the median, since large balls are in
sparse regions. R(g) >= 1 means that g lies in one of those balls. The metric is the median over the samples;
`realism` gives the scores.
"""

from __future__ import annotations

import numpy as np
import torch

from sfumato.evaluation.intervals.standard_errors import StandardError
from sfumato.evaluation.metrics.metric import BaseMetric, FeatureSet, Metric, MetricOptions, MetricResult
from sfumato.evaluation.neighbours.cloud import BLOCK, Cloud, blocks, exact_squared, rounded_squared
from sfumato.evaluation.neighbours.sets import squared_radius_N
from sfumato.evaluation.statistics import Float64Array

NORMAL = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""
SHOWN = 16
"""Samples named at either end of the order."""


def realism(
    reference: FeatureSet, generated: FeatureSet, options: MetricOptions, block: int = BLOCK
) -> Float64Array:
    """Scores [M], 0 and up; infinite for a sample that equals a vector of the reference.

    The reference vector that gives the maximum is found in float64, and the score computed from the
    difference of the two vectors.
    """
    squared_N = squared_radius_N(reference, options)
    kept_N = np.flatnonzero(squared_N <= np.median(squared_N))
    support = Cloud.of(reference.embedding_ND[kept_N])
    query = Cloud.of(generated.embedding_ND, support.centre_D)
    best_M = np.full(len(query), -1.0)
    for rows in blocks(len(query), block):
        for columns in blocks(len(support), block):
            squared = rounded_squared(query, rows, support, columns, torch.float64).numpy()
            radius = squared_N[kept_N[slice(*columns)]]
            with np.errstate(divide="ignore", invalid="ignore"):
                who_B = (radius / np.maximum(squared, 0)).argmax(axis=1)
                exact_B = exact_squared(query.x_ND, support.x_ND, np.arange(*rows), who_B + columns[0])
                ratio_B = np.where(exact_B == 0, np.inf, radius[who_B] / exact_B)
            best_M[slice(*rows)] = np.maximum(best_M[slice(*rows)], ratio_B)
    score_M: Float64Array = np.sqrt(best_M)
    return score_M


def error_of_median(value_M: Float64Array) -> StandardError | None:
    """From the two values between which the median lies with a chance of 95 % (McKean & Schrader 1984).

    None for fewer than ten values, or if the two are equal.
    """
    size = len(value_M)
    if size < 10:
        return None
    place = int((size - NORMAL * size**0.5) / 2)
    ordered_M = np.sort(value_M)
    error = float(ordered_M[size - 1 - place] - ordered_M[place]) / (2 * NORMAL)
    return StandardError(error, "order statistics around the median", low=0) if error else None


class Realism(BaseMetric):
    """Median realism; the details name the most and the least real samples."""

    name = "realism"
    higher_is_better = True

    def least_samples(self, options: MetricOptions) -> int:
        """A k-th neighbour needs k + 1 vectors."""
        return options.k + 1

    def compute(self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> MetricResult:
        score_M = realism(reference, generated, options)
        order_M = np.argsort(-score_M, kind="stable")
        details = {
            "k": options.k,
            "inside": float((score_M >= 1).mean()),
            "most_real": order_M[:SHOWN].tolist(),
            "least_real": order_M[::-1][:SHOWN].tolist(),
        }
        # Copies of reference images score infinitely; the median of many of them must stay a number.
        finite_M = np.minimum(score_M, 1e6)
        return MetricResult(
            self.name, float(np.median(finite_M)), details, error=lambda: error_of_median(finite_M)
        )


METRICS: tuple[Metric, ...] = (Realism(),)

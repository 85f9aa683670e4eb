"""Density and coverage (Naeem et al. 2020, eqs. 4-5).

Precision counts a sample once, however few outliers of the reference hold it, and recall builds its manifold
from the generated set, outliers included. Density and coverage use only the reference's balls. Density counts
how many hold a sample, over k (1 is expected for samples of the reference's own distribution, more is
possible); coverage is the share of the reference's balls that hold a sample. Balls include their surface and
reach to the fifth neighbour by default, as the authors' do.

With the reference fixed, density is a mean of independent terms. Coverage is not, because a sample may fill
several balls; see `_error_of_coverage`.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from sfumato.evaluation.intervals.groups import dealt
from sfumato.evaluation.intervals.standard_errors import GROUPS, StandardError, jackknife
from sfumato.evaluation.metrics.metric import BaseMetric, FeatureSet, Metric, MetricOptions, MetricResult
from sfumato.evaluation.neighbours.contents import Contents, contents
from sfumato.evaluation.neighbours.sets import mutual, squared_radius_N
from sfumato.evaluation.neighbours.subsets import coverage_of_subsets
from sfumato.evaluation.statistics import Float64Array, Int64Array

TERMS = 4
FREEDOM = 20.0
"""The estimated variance varies like one of 20 to 50 degrees of freedom at 500 real images and samples."""


class Density(BaseMetric):
    """Mean number of the reference's balls around a generated vector, over k; 0 and up."""

    name = "density"
    higher_is_better = True
    refuses_noise = True

    def least_samples(self, options: MetricOptions) -> int:
        """A k-th neighbour needs k + 1 vectors."""
        return options.density_k + 1

    def compute(self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> MetricResult:
        k = options.density_k
        density_M = mutual(reference, generated, options, k).balls_of_a_M / k
        return MetricResult(self.name, float(density_M.mean()), {"k": k}, density_M)


class Coverage(Density):
    """Share of the reference's balls that hold a generated vector, in [0, 1]."""

    name = "coverage"
    refuses_noise = False

    def compute(self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> MetricResult:
        k = options.density_k
        held_N = mutual(reference, generated, options, k).a_holds_N
        details = {"covered": int(held_N.sum()), "of": len(held_N), "k": k}

        def error() -> StandardError | None:
            radius_N = squared_radius_N(reference, options, k)
            held = contents(reference.embedding_ND, generated.embedding_ND, radius_N, spread=options.spread)
            found = _error_of_coverage(held, len(generated), generated.label_N)
            return found or _error_by_groups(reference, generated, radius_N, options)

        return MetricResult(self.name, float(held_N.mean()), details, error=error)


def _error_of_coverage(
    held: Contents, samples: int, label_M: Int64Array | None = None
) -> StandardError | None:
    """Without bias, from how many samples are in each ball and which balls hold the same ones.

    For numbers of samples that are Poisson, the covariance of two balls' being empty is e^-|u| - e^-(|a| +
    |b|), with |a| and |b| the expected numbers in the balls and |u| in their union. From counts n it is
    estimated by (-1)^(n + 1) if both balls hold the same n > 0 samples, and 0 otherwise: the estimator of
    Good & Toulmin (1956) for unseen species, of which two samples find what one did not. A fixed number of
    samples (of each class) takes away the square of the covariance with it, the number of balls that hold one
    sample. Terms of many samples are damped, since they cancel (Efron & Thisted 1976, section 5).
    """
    filled_N = held.count_N > 0
    _, first, alike = np.unique(held.token_N[filled_N], return_index=True, return_counts=True)
    count_U = held.count_N[filled_N][first]
    variance = float((np.square(alike) * (-1.0) ** (count_U + 1) * _damping(count_U)).sum())
    alone_N = held.count_N == 1
    label_M = np.zeros(samples, np.int64) if label_M is None else label_M
    for label in np.unique(label_M):
        alone = int((label_M[held.last_N[alone_N]] == label).sum())
        variance -= alone**2 / int((label_M == label).sum())
    if variance <= 0:
        return None
    error = math.sqrt(variance) / len(held.count_N)
    return StandardError(error, "variance from the samples in each ball", FREEDOM, low=0, high=1)


def _error_by_groups(
    reference: FeatureSet, generated: FeatureSet, radius_N: Float64Array, options: MetricOptions
) -> StandardError | None:
    """Where the terms above cancel to nothing, as they may by chance: the delete-a-group jackknife, which is
    rather too long. None if coverage never differs."""
    rng = np.random.default_rng(options.settings.seed)
    group_M = dealt(len(generated), GROUPS, rng, generated.label_N)
    kept_BM = group_M != np.arange(GROUPS)[:, None]
    share_B = coverage_of_subsets(
        reference.embedding_ND, generated.embedding_ND, radius_N, kept_BM, spread=options.spread
    )
    found = jackknife(share_B)
    return replace(found, low=0.0, high=1.0) if found.value else None


def _damping(count_U: Int64Array) -> Float64Array:
    """The chance that `TERMS` tosses of a coin show `count` heads or more: Euler's summation."""
    from scipy import stats  # here: reading a recipe imports this module

    damping_U: Float64Array = stats.binom.sf(count_U - 1, TERMS, 0.5)
    return damping_U


METRICS: tuple[Metric, ...] = (Density(), Coverage())

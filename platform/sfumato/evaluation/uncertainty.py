"""How much a number could have varied: a confidence interval for every metric.

The interval covers the randomness of the samples: another seed gives other samples and so another value.
The reference is treated as fixed, since it is the same for all compared models. Three methods, chosen
by the kind of metric and named in the report:

- a share of images (precision, class accuracy ...): Wilson's score interval (1927), which stays right near
  0 and 1, where a bootstrap has zero width;
- a mean of a per-image figure: the percentile bootstrap (Efron 1979);
- anything else (Fréchet distance, kernel distances, inception score): the delete-a-group jackknife
  (Quenouille 1956; Kott 2001). Leaving a tenth of the samples out each time keeps the number of samples the
  same in all estimates, so that the bias of a Fréchet distance in N does not look like spread.

All of it is a pure function of the features and of the seed: no worker count or batch size enters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from sfumato.core.config import Config
from sfumato.core.seeds import derive
from sfumato.evaluation.metrics.metric import FeatureSet, MetricResult
from sfumato.evaluation.statistics import Float64Array, Int64Array

GROUPS = 10
FEW_VALUES = 64
"""Up to this many distinct terms are resampled by their counts, which is the same bootstrap in less time."""


class IntervalSettings(Config):
    """Confidence intervals of the metrics."""

    confidence: float = Field(0.95, gt=0, lt=1, description="Coverage of every interval.")
    resamples: int = Field(1_000, ge=100, description="Resamples of a bootstrap.")
    enabled: bool = Field(
        True, description="Off saves the jackknife: ten more computations of each distance."
    )


@dataclass(frozen=True, slots=True)
class Interval:
    """`low` to `high` cover the number with the requested confidence; `method` names the method."""

    low: float
    high: float
    stderr: float
    confidence: float
    method: str


def interval(
    result: MetricResult,
    again: Callable[[FeatureSet], MetricResult],
    generated: FeatureSet,
    settings: IntervalSettings,
    *,
    seed: int,
) -> Interval | None:
    """The interval of a result; `again` computes the metric on other generated features.

    None if the metric declares that it has none, or if there are too few samples to leave any out.
    """
    if not settings.enabled or result.no_interval:
        return None
    if result.terms_M is not None:
        return interval_of_mean(result.terms_M, settings, seed=derive(seed, "interval", result.name))
    if result.error is not None:
        return _normal(result.value, result.error, settings.confidence)
    if len(generated) < 2 * GROUPS:
        return None
    return jackknife(lambda kept: again(kept).value, generated, result.value, settings.confidence)


def interval_of_mean(terms_M: Float64Array, settings: IntervalSettings, *, seed: int) -> Interval | None:
    """The interval of the mean of independent terms [M]; None for fewer than two."""
    from scipy import stats  # here, as in the other functions: reading a recipe imports this module

    if len(terms_M) < 2:
        return None
    stderr = float(terms_M.std(ddof=1) / math.sqrt(len(terms_M)))
    if np.isin(terms_M, (0.0, 1.0)).all():
        share = stats.binomtest(int(terms_M.sum()), len(terms_M))
        found = share.proportion_ci(settings.confidence, method="wilson")
        return Interval(float(found.low), float(found.high), stderr, settings.confidence, "Wilson score")
    means = _resampled_means(terms_M, settings.resamples, np.random.default_rng(seed))
    tail = (1 - settings.confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    method = f"percentile bootstrap over {len(terms_M)} images"
    return Interval(float(low), float(high), stderr, settings.confidence, method)


def jackknife(
    compute: Callable[[FeatureSet], float],
    generated: FeatureSet,
    value: float,
    confidence: float,
    groups: int = GROUPS,
) -> Interval:
    """Delete-a-group jackknife around `value`, with Student's t at `groups` - 1 degrees of freedom.

    Every group holds as many samples of each class as the others, give or take one.
    """
    from scipy import stats

    group_N = _groups(generated, groups)
    estimates = np.array([compute(generated.take(group_N != g)) for g in range(groups)])
    stderr = math.sqrt((groups - 1) / groups * float(np.square(estimates - estimates.mean()).sum()))
    reach = float(stats.t.ppf((1 + confidence) / 2, groups - 1)) * stderr
    method = f"jackknife over {groups} groups of samples"
    return Interval(value - reach, value + reach, stderr, confidence, method)


def _groups(generated: FeatureSet, groups: int) -> Int64Array:
    """The group of each sample: dealt in turn within a class, in an order without a period.

    Classes are also dealt to samples in turn: the group of sample i must not be i mod `groups`, or each of
    ten groups would be one of ten classes.
    """
    order_N = np.random.default_rng(0).permutation(len(generated))
    if generated.label_N is not None:
        order_N = order_N[np.argsort(generated.label_N[order_N], kind="stable")]
    group_N = np.empty(len(generated), np.int64)
    group_N[order_N] = np.arange(len(generated)) % groups
    return group_N


def _normal(value: float, stderr: float, confidence: float) -> Interval:
    from scipy import stats

    reach = float(stats.norm.ppf((1 + confidence) / 2)) * stderr
    return Interval(value - reach, value + reach, stderr, confidence, "the metric's own standard error")


def _resampled_means(terms_M: Float64Array, resamples: int, rng: np.random.Generator) -> Float64Array:
    """Means of `resamples` resamples with replacement."""
    value_V, count_V = np.unique(terms_M, return_counts=True)
    size = len(terms_M)
    if len(value_V) <= FEW_VALUES:
        drawn_RV = rng.multinomial(size, count_V / size, size=resamples)
        return np.asarray(drawn_RV @ value_V / size)
    return np.array([terms_M[rng.integers(size, size=size)].mean() for _ in range(resamples)])

"""How much a number could have varied: a confidence interval for every metric.

The interval covers the randomness of the samples: another seed gives other samples and so another value.
The reference is treated as fixed, since it is the same for all compared models. What is covered is the
figure's mean over seeds at this number of samples. The method depends on the kind of metric and is named in
the report:

- a share of images that are judged one by one (precision, class accuracy ...): Wilson's score interval
  (1927), which stays right near 0 and 1, where a bootstrap has zero width;
- a mean of a per-image figure: the percentile bootstrap (Efron 1979);
- a figure with a standard error of its own (kernel distances, recall, coverage, inception score, the
  extrapolated Fréchet distance; see their files): Student's t, or the normal distribution if the error is as
  good as known;
- anything else (Fréchet distance ...): the delete-a-group jackknife, Student's t (`standard_errors.py`).

Samples that were drawn class by class in fixed numbers vary less than independent ones. Errors account for
that where labels are known (groups and halves hold their share of every class); the first two methods do not,
and are then a little too wide.

All of it is a pure function of the features and of the seed: no worker count or batch size enters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
from pydantic import Field

from sfumato.core.config import Config
from sfumato.core.seeds import derive
from sfumato.evaluation.intervals.groups import dealt
from sfumato.evaluation.intervals.standard_errors import GROUPS, StandardError, jackknife
from sfumato.evaluation.metrics.metric import FeatureSet, MetricResult
from sfumato.evaluation.statistics import Float64Array

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
    """`low` to `high` cover the number with the requested confidence; `method` names the method.

    `freedom` are the degrees of freedom of `stderr`; None: so many that they do not matter. `deviation_P` is
    what each sample or group adds to the figure, if that is known (`StandardError`).
    """

    low: float
    high: float
    stderr: float
    confidence: float
    method: str
    freedom: float | None = None
    deviation_P: Float64Array | None = None

    def facts(self) -> Mapping[str, object]:
        """Plain values for a report: all but the deviations."""
        return {name: value for name, value in asdict(self).items() if name != "deviation_P"}


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
    seed = derive(seed, "interval", result.name)
    if result.terms_M is not None:
        return interval_of_mean(result.terms_M, settings, seed=seed)
    error = result.error() if result.error is not None else _by_groups(again, generated, seed)
    return None if error is None else interval_of(result.value, error, settings.confidence)


def interval_of(value: float, error: StandardError, confidence: float) -> Interval:
    """Symmetric around the value, as far as the figure's range permits."""
    from scipy import stats  # here, as in the other functions: reading a recipe imports this module

    reach = float(stats.t.ppf((1 + confidence) / 2, error.freedom)) * error.value
    return Interval(
        low=max(error.low, value - reach),
        high=min(error.high, value + reach),
        stderr=error.value,
        confidence=confidence,
        method=error.method,
        freedom=None if math.isinf(error.freedom) else error.freedom,
        deviation_P=error.deviation_P,
    )


def interval_of_mean(terms_M: Float64Array, settings: IntervalSettings, *, seed: int) -> Interval | None:
    """The interval of the mean of independent terms [M]; None for fewer than two."""
    from scipy import stats

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


def _by_groups(
    again: Callable[[FeatureSet], MetricResult], generated: FeatureSet, seed: int
) -> StandardError | None:
    if len(generated) < 2 * GROUPS:
        return None
    group_N = dealt(len(generated), GROUPS, np.random.default_rng(seed), generated.label_N)
    return jackknife([again(generated.take(group_N != group)).value for group in range(GROUPS)])


def _resampled_means(terms_M: Float64Array, resamples: int, rng: np.random.Generator) -> Float64Array:
    """Means of `resamples` resamples with replacement."""
    value_V, count_V = np.unique(terms_M, return_counts=True)
    size = len(terms_M)
    if len(value_V) <= FEW_VALUES:
        drawn_RV = rng.multinomial(size, count_V / size, size=resamples)
        return np.asarray(drawn_RV @ value_V / size)
    return np.array([terms_M[rng.integers(size, size=size)].mean() for _ in range(resamples)])

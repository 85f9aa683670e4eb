"""Whether the difference between two runs is beyond noise.

The null hypothesis: both models draw from one distribution, so it does not matter which run a sample came
from. Under it samples may change sides, which gives exact permutation tests (Fisher 1935; Good 2005). Which
test fits depends on what a figure is made of, as its metric declares:

- A mean over samples that are judged one by one (precision, class accuracy ...) is tested on its terms. If
  sample i of both runs has the same class, the two terms of an index change sides (the sign-flip test). That
  keeps the classes' fixed numbers, and if the seeds are the same it removes what the pairs have in common.
  Otherwise all terms are dealt again.
- A mean over real images that the models themselves judge (bits per dimension) is tested by sign flips if
  the images are the same.
- Fréchet distance, recall and coverage are tested on the features: groups of samples change sides, and both
  figures are measured again (`regrouping.py`).
- For any other figure, or if the features no longer exist, a t-test on its standard errors decides: on that
  of the difference (`standard_errors.of_difference`) if sample i has the same seed and class in both runs,
  otherwise on the two.

p is the share of rearrangements whose difference is at least as large as the observed one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from sfumato.core.seeds import derive
from sfumato.evaluation.compare.regrouping import (
    GROUPS,
    SLACK,
    Figures,
    coverage_of_groups,
    frechet_of_groups,
    grouped,
    recall_of_groups,
    regrouped_p,
)
from sfumato.evaluation.compare.runs import EvaluatedRun, of_equal_classes, outdated_interval, paired
from sfumato.evaluation.intervals.standard_errors import of_difference
from sfumato.evaluation.metrics.metric import FeatureSet, MetricOptions
from sfumato.evaluation.neighbours.sets import squared_radius_N
from sfumato.evaluation.statistics import Float64Array

RESAMPLES = 9_999
MOST_DIMENSIONS = 512
"""A Fréchet distance over more dimensions takes seconds; then the standard errors decide."""
MOST_SAMPLES = 20_000
"""Of either run or the reference. Searching more neighbours takes minutes; then the errors decide."""
FEW_VALUES = 64
CHUNK = 2**22


@dataclass(frozen=True, slots=True)
class Difference:
    """`value` is the second run's figure minus the first's; `p` in (0, 1]; `method` names the test."""

    metric: str
    value: float
    p: float
    method: str


def difference(a: EvaluatedRun, b: EvaluatedRun, metric: str) -> Difference | None:
    """The tested difference of a figure that both have; None if no test is possible.

    Deterministic: rearrangements are drawn from a seed derived from the metric's name.
    """
    value = b.report.metrics[metric] - a.report.metrics[metric]
    rng = np.random.default_rng(derive("difference", metric))
    tests = (_on_terms, _on_features, _by_errors)
    found = (test(a, b, metric, rng) for test in tests)
    return next((Difference(metric, value, *result) for result in found if result is not None), None)


Tested = tuple[float, str] | None


def _on_terms(a: EvaluatedRun, b: EvaluatedRun, metric: str, rng: np.random.Generator) -> Tested:
    terms_a, terms_b = a.terms.get(metric), b.terms.get(metric)
    if terms_a is None or terms_b is None or a.terms_of(metric) != b.terms_of(metric):
        return None
    if a.terms_of(metric) == "references":
        same, how = a.report.reference_digest == b.report.reference_digest, "paired images"
    else:
        same = paired(a, b) or of_equal_classes(a, b)
        how = "paired images" if paired(a, b) else "images paired by class"
    if same and len(terms_a) == len(terms_b):
        return sign_flip(terms_b - terms_a, rng), f"sign-flip test on {how}"
    return two_sample(terms_a, terms_b, rng), "permutation test"


def sign_flip(difference_N: Float64Array, rng: np.random.Generator, resamples: int = RESAMPLES) -> float:
    """Two-sided p of the mean of paired differences under random signs."""
    seen = abs(float(difference_N.sum()))
    value_V, count_V = np.unique(np.abs(difference_N), return_counts=True)
    if len(value_V) <= FEW_VALUES:
        # A value that occurs n times contributes value * (2 Binomial(n, 1/2) - n).
        plus_RV = rng.binomial(count_V, 0.5, size=(resamples, len(count_V)))
        sum_R = (2 * plus_RV - count_V) @ value_V
        return _part_as_large(np.abs(sum_R), seen)
    sums = []
    for rows in _chunks(resamples, len(difference_N)):
        sign_RN = rng.integers(0, 2, size=(rows, len(difference_N)), dtype=np.int8) * 2 - 1
        sums.append(sign_RN @ difference_N)
    return _part_as_large(np.abs(np.concatenate(sums)), seen)


def two_sample(
    terms_a: Float64Array, terms_b: Float64Array, rng: np.random.Generator, resamples: int = RESAMPLES
) -> float:
    """Two-sided p of the difference of two means when all terms are dealt again."""
    pooled = np.concatenate([terms_a, terms_b])
    n, m, total = len(terms_a), len(terms_b), float(pooled.sum())
    seen = abs(float(terms_b.mean() - terms_a.mean()))
    value_V, count_V = np.unique(pooled, return_counts=True)
    if len(value_V) <= FEW_VALUES:
        dealt_RV = rng.multivariate_hypergeometric(count_V, n, size=resamples, method="marginals")
        sum_R = dealt_RV @ value_V
    else:
        sum_R = np.array([rng.permutation(pooled)[:n].sum() for _ in range(resamples)])
    return _part_as_large(np.abs((total - sum_R) / m - sum_R / n), seen)


def _on_features(a: EvaluatedRun, b: EvaluatedRun, metric: str, rng: np.random.Generator) -> Tested:
    name, features = a.report.computed_on.get(metric, ("", ""))
    if name not in _OF_GROUPS or a.report.reference_digest != b.report.reference_digest:
        return None
    if a.report.features[features].get("digest") != b.report.features[features].get("digest"):
        return None
    mine, theirs, real = a.features(features), b.features(features), a.reference(features)
    if mine is None or theirs is None or real is None or min(len(mine), len(theirs)) < 2 * GROUPS:
        return None
    in_pairs = paired(a, b) or of_equal_classes(a, b)
    group = grouped(len(mine), len(theirs), rng, in_pairs=in_pairs)
    k = {run.report.details.get(metric, {}).get("k") for run in (a, b)}
    figures = _OF_GROUPS[name](real, (mine, theirs), group, k) if len(k) == 1 else None
    if figures is None:
        return None
    how = "paired by seed and class" if paired(a, b) else "paired by class" if in_pairs else "dealt again"
    return regrouped_p(figures, rng, in_pairs=in_pairs), f"permutation test on features, {how}"


Pair = tuple[FeatureSet, FeatureSet]
Groups = tuple[np.typing.NDArray[np.int64], np.typing.NDArray[np.int64]]


def _frechet(real: FeatureSet, made: Pair, group: Groups, k: set[object]) -> Figures | None:
    if real.embedding_ND.shape[1] > MOST_DIMENSIONS:
        return None
    return frechet_of_groups(real.moments, _embeddings(made), group)


def _recall(real: FeatureSet, made: Pair, group: Groups, k: set[object]) -> Figures | None:
    if max(map(len, (real, *made))) > MOST_SAMPLES:
        return None
    return recall_of_groups(real.embedding_ND, _embeddings(made), group, int(str(k.pop())))


def _coverage(real: FeatureSet, made: Pair, group: Groups, k: set[object]) -> Figures | None:
    if max(map(len, (real, *made))) > MOST_SAMPLES:
        return None
    radius_N = squared_radius_N(real, MetricOptions(k=int(str(k.pop()))))
    return coverage_of_groups(real.embedding_ND, _embeddings(made), group, radius_N)


def _embeddings(made: Pair) -> tuple[np.typing.NDArray[np.float32], np.typing.NDArray[np.float32]]:
    return made[0].embedding_ND, made[1].embedding_ND


_OF_GROUPS: dict[str, Callable[[FeatureSet, Pair, Groups, set[object]], Figures | None]] = {
    "fd": _frechet,
    "recall": _recall,
    "coverage": _coverage,
}


def _by_errors(a: EvaluatedRun, b: EvaluatedRun, metric: str, rng: np.random.Generator) -> Tested:
    """A t-test; None if a run has no standard error, or only that of an earlier version.

    For two errors, Welch's degrees of freedom; for one of the difference, the lesser of the two runs'.
    """
    if any(metric not in run.report.intervals or outdated_interval(run, metric) for run in (a, b)):
        return None
    found = [run.report.intervals[metric] for run in (a, b)]
    errors = [float(str(interval["stderr"])) for interval in found]
    freedoms = [_freedom(interval) for interval in found]
    mine, theirs = a.deviations(metric), b.deviations(metric)
    if paired(a, b) and mine is not None and theirs is not None and len(mine) == len(theirs):
        scale, freedom = of_difference(errors[0], errors[1], mine, theirs), min(freedoms)
        method = "t-test of the difference's standard error, paired by seed and class"
    else:
        scale = math.hypot(*errors)
        terms = [error**4 / free for error, free in zip(errors, freedoms, strict=True)]
        freedom = scale**4 / sum(terms) if sum(terms) else math.inf
        method = "t-test of the two standard errors"
    if scale == 0:
        return None
    value = b.report.metrics[metric] - a.report.metrics[metric]
    return float(2 * stats.t.sf(abs(value) / scale, freedom)), method


def _freedom(interval: object) -> float:
    """Degrees of freedom of a recorded interval's error; reports of 0.1 do not have them."""
    assert isinstance(interval, dict)
    if interval.get("freedom") is not None:
        return float(interval["freedom"])
    return 9.0 if str(interval["method"]).startswith("jackknife over 10 groups") else math.inf


def _part_as_large(value_R: Float64Array, seen: float) -> float:
    """(1 + hits) / (1 + R): the observed arrangement is one of the possible ones, so p is never 0."""
    hits = int((value_R >= seen * (1 - SLACK) - SLACK).sum())
    return (1 + hits) / (1 + len(value_R))


def _chunks(rows: int, columns: int) -> list[int]:
    size = max(1, CHUNK // max(1, columns))
    return [min(size, rows - first) for first in range(0, rows, size)]

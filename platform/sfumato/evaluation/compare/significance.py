"""Whether the difference between two runs is beyond noise.

The null hypothesis: both models draw from one distribution, so it does not matter which run a sample came
from. Under it samples may change sides, which gives exact permutation tests (Fisher 1935; Good 2005):

- A mean over images (precision, class accuracy, recall ...) is tested on its terms. If sample i of both
  runs has the same seed and class, or the terms belong to the same reference images, the two terms of an
  index change sides (the sign-flip test), which removes what the pairs have in common. Otherwise all terms
  are dealt again. For precision and recall the manifolds are treated as fixed.
- A Fréchet distance is tested on the features: groups of samples change sides, and both distances to the
  reference are recomputed.
- For any other figure, or if the features no longer exist, the two standard errors decide (a z-test).

p is the share of rearrangements whose difference is at least as large as the observed one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from sfumato.core.seeds import derive
from sfumato.evaluation.compare.runs import EvaluatedRun, paired
from sfumato.evaluation.metrics.frechet import frechet_distance
from sfumato.evaluation.statistics import Float32Array, Float64Array, Moments

RESAMPLES = 9_999
REGROUPINGS = 199
GROUPS = 20
MOST_DIMENSIONS = 512
"""A distance over more dimensions takes seconds; then the standard errors decide."""
FEW_VALUES = 64
CHUNK = 2**22
SLACK = 1e-12
"""Relative; sums of the same numbers in another order differ by rounding and must count as equal."""


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
    terms_a, terms_b = a.terms.get(metric), b.terms.get(metric)
    if terms_a is not None and terms_b is not None:
        if len(terms_a) == len(terms_b) and _pairs(a, b, len(terms_a)):
            p = sign_flip(terms_b - terms_a, rng)
            return Difference(metric, value, p, "sign-flip test on paired images")
        return Difference(metric, value, two_sample(terms_a, terms_b, rng), "permutation test")
    return _on_features(a, b, metric, value, rng) or _by_errors(a, b, metric, value)


def _pairs(a: EvaluatedRun, b: EvaluatedRun, length: int) -> bool:
    of_reference = a.report.samples != length
    same_reference = a.report.reference_digest == b.report.reference_digest
    return same_reference if of_reference else paired(a, b)


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


def frechet_permutation(
    a_ND: Float32Array,
    b_ND: Float32Array,
    reference: Moments,
    rng: np.random.Generator,
    *,
    in_pairs: bool,
    regroupings: int = REGROUPINGS,
    groups: int = GROUPS,
) -> float:
    """Two-sided p of the difference of two Fréchet distances to one reference.

    Group g of a set holds its samples i with i mod `groups` == g. In pairs, groups of one index change sides;
    otherwise all groups are dealt again.
    """
    moments = [Moments.of(x_ND[g::groups]) for x_ND in (a_ND, b_ND) for g in range(groups)]

    def gap(first: list[int]) -> float:
        second = sorted(set(range(2 * groups)) - set(first))
        return abs(
            frechet_distance(reference, _merged(moments, first))
            - frechet_distance(reference, _merged(moments, second))
        )

    deal = _swapped if in_pairs else _dealt
    seen = gap(list(range(groups)))
    gap_R = np.array([gap(deal(groups, rng)) for _ in range(regroupings)])
    return _part_as_large(gap_R, seen)


def _swapped(groups: int, rng: np.random.Generator) -> list[int]:
    swap_G = rng.integers(0, 2, size=groups)
    return sorted(int(g + groups * swap_G[g]) for g in range(groups))


def _dealt(groups: int, rng: np.random.Generator) -> list[int]:
    return sorted(int(g) for g in rng.permutation(2 * groups)[:groups])


def _merged(moments: list[Moments], members: list[int]) -> Moments:
    total = moments[members[0]]
    for member in members[1:]:
        total = total.merge(moments[member])
    return total


def _on_features(
    a: EvaluatedRun, b: EvaluatedRun, metric: str, value: float, rng: np.random.Generator
) -> Difference | None:
    name, features = a.report.computed_on.get(metric, ("", ""))
    if name != "fd" or a.report.reference_digest != b.report.reference_digest:
        return None
    if a.report.features[features].get("digest") != b.report.features[features].get("digest"):
        return None
    mine, theirs, real = a.features(features), b.features(features), a.reference(features)
    if mine is None or theirs is None or real is None:
        return None
    if mine.embedding_ND.shape[1] > MOST_DIMENSIONS or min(len(mine), len(theirs)) < 2 * GROUPS:
        return None
    in_pairs = paired(a, b)
    p = frechet_permutation(mine.embedding_ND, theirs.embedding_ND, real.moments, rng, in_pairs=in_pairs)
    how = "paired by seed and class" if in_pairs else "dealt again"
    return Difference(metric, value, p, f"permutation test on features, {how}")


def _by_errors(a: EvaluatedRun, b: EvaluatedRun, metric: str, value: float) -> Difference | None:
    errors = [_error(run, metric) for run in (a, b)]
    if any(error is None for error in errors):
        return None
    scale = math.hypot(*(error for error in errors if error is not None))
    p = 1.0 if value == 0 else float(2 * stats.norm.sf(abs(value) / scale)) if scale else 0.0
    return Difference(metric, value, p, "z-test of the two standard errors")


def _error(run: EvaluatedRun, metric: str) -> float | None:
    found = run.report.intervals.get(metric)
    return None if found is None else float(str(found["stderr"]))


def _part_as_large(value_R: Float64Array, seen: float) -> float:
    """(1 + hits) / (1 + R): the observed arrangement is one of the possible ones, so p is never 0."""
    hits = int((value_R >= seen * (1 - SLACK) - SLACK).sum())
    return (1 + hits) / (1 + len(value_R))


def _chunks(rows: int, columns: int) -> list[int]:
    size = max(1, CHUNK // max(1, columns))
    return [min(size, rows - first) for first in range(0, rows, size)]

"""Permutation tests that exchange groups of samples between two runs and measure both again.

For figures whose terms depend on one another: a Fréchet distance's moments, the manifold that recall builds.
If both models draw from one distribution, it does not matter which run a group of samples came from (Fisher
1935; Good 2005). Groups are random, so that each is like its run even where samples come class by class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import numpy as np
import numpy.typing as npt

from sfumato.evaluation.intervals.groups import dealt
from sfumato.evaluation.metrics.frechet import frechet_distance
from sfumato.evaluation.neighbours.subsets import coverage_of_subsets, recall_of_subsets
from sfumato.evaluation.statistics import Float32Array, Float64Array, Int64Array, Moments

GROUPS = 20
REGROUPINGS = (199, 800)
"""First so many; if the difference looks real, so many more, for a smaller p."""
FEW_HITS = 10
SLACK = 1e-12
"""Relative; sums of the same numbers in another order differ by rounding and must count as equal."""

Bools = npt.NDArray[np.bool_]
Figures = Callable[[Bools], Float64Array]
"""The figures [B] of sets that consist of some groups [B, 2 * GROUPS] of both runs together."""


def regrouped_p(
    figures: Figures,
    rng: np.random.Generator,
    *,
    in_pairs: bool,
    regroupings: Sequence[int] = REGROUPINGS,
) -> float:
    """Two-sided p of the difference of a figure between the first and the last `GROUPS` groups.

    In pairs, groups of one index change sides; otherwise all groups are dealt again. `FEW_HITS` equal or
    larger differences end the test: p is then above 0.05, so that stopping rejects nothing.
    """
    deal = _swapped if in_pairs else _dealt_again
    first, *further = regroupings
    as_they_are = np.arange(2 * GROUPS) < GROUPS
    gap_R = _gaps(figures, np.array([as_they_are, *(deal(rng) for _ in range(first))]))
    least, drawn = gap_R[0] * (1 - SLACK) - SLACK, first
    hits = int((gap_R[1:] >= least).sum())
    for number in further:
        if hits >= FEW_HITS:
            break
        gap_R = _gaps(figures, np.array([deal(rng) for _ in range(number)]))
        hits, drawn = hits + int((gap_R >= least).sum()), drawn + number
    # The observed arrangement is one of the possible ones, so p is never 0.
    return (1 + hits) / (1 + drawn)


def grouped(
    first: int, second: int, rng: np.random.Generator, *, in_pairs: bool
) -> tuple[Int64Array, Int64Array]:
    """The groups of the samples of two runs: 0 to GROUPS - 1 and GROUPS to 2 GROUPS - 1.

    In pairs, sample i is in the same group of both.
    """
    group_N = dealt(first, GROUPS, rng)
    return group_N, GROUPS + (group_N if in_pairs else dealt(second, GROUPS, rng))


def frechet_of_groups(
    real: Moments, made: tuple[Float32Array, Float32Array], group: tuple[Int64Array, Int64Array]
) -> Figures:
    """Fréchet distances to one reference."""
    moments = [
        Moments.of(made_ND[group_N == number])
        for made_ND, group_N in zip(made, group, strict=True)
        for number in np.unique(group_N)
    ]

    def figures(members_BG: Bools) -> Float64Array:
        sets = [
            reduce(Moments.merge, (moments[g] for g in np.flatnonzero(members))) for members in members_BG
        ]
        return np.array([frechet_distance(real, of_set) for of_set in sets])

    return figures


def recall_of_groups(
    real_ND: Float32Array,
    made: tuple[Float32Array, Float32Array],
    group: tuple[Int64Array, Int64Array],
    k: int,
) -> Figures:
    """Recall of one reference, every set with a manifold of its own."""
    made_ND, group_N = np.concatenate(made), np.concatenate(group)
    return lambda members_BG: recall_of_subsets(real_ND, made_ND, members_BG[:, group_N], k)


def coverage_of_groups(
    real_ND: Float32Array,
    made: tuple[Float32Array, Float32Array],
    group: tuple[Int64Array, Int64Array],
    squared_radius_N: Float64Array,
) -> Figures:
    """Coverage of one reference's balls."""
    made_ND, group_N = np.concatenate(made), np.concatenate(group)
    return lambda members_BG: coverage_of_subsets(real_ND, made_ND, squared_radius_N, members_BG[:, group_N])


def _gaps(figures: Figures, first_RG: Bools) -> Float64Array:
    value_B = figures(np.concatenate([first_RG, ~first_RG]))
    gap_R: Float64Array = np.abs(value_B[: len(first_RG)] - value_B[len(first_RG) :])
    return gap_R


def _swapped(rng: np.random.Generator) -> Bools:
    first_G = rng.integers(0, 2, size=GROUPS).astype(np.bool_)
    return np.concatenate([first_G, ~first_G])


def _dealt_again(rng: np.random.Generator) -> Bools:
    first_G = np.zeros(2 * GROUPS, np.bool_)
    first_G[rng.permutation(2 * GROUPS)[:GROUPS]] = True
    return first_G

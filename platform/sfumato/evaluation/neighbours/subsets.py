"""Recall and coverage of many subsets of the samples, in one pass over the distances.

A subset has a manifold of its own: a sample's ball reaches to its k-th nearest neighbour inside the subset.
Each sample's nearest `reach` others are found once, and a pair of a real vector and a sample is stored as its
rank: how many of these others are nearer to the sample. The vector is inside the subset's ball if fewer than
k of them belong to the subset, so a subset is a threshold per sample, and all subsets share the pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from sfumato.evaluation.neighbours.balls import TIE, Balls, Bools, Span, inside
from sfumato.evaluation.neighbours.cloud import BLOCK, Cloud, Vectors, blocks, exact_squared, rounded_squared
from sfumato.evaluation.neighbours.nearest import nearest_others
from sfumato.evaluation.parallel_map import Spread, in_process
from sfumato.evaluation.statistics import Float64Array, Int64Array

CHUNK = 2**24
EXACT = 0.05
"""Share of a block's pairs up to which their distances are computed pair by pair."""

Int16Array = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class _Shared:
    balls: Balls
    squared_MR: Float64Array
    """Squared distances of each sample's nearest others; empty for balls that do not depend on the subset."""
    threshold_BM: Int16Array
    """The highest rank inside the ball of sample j in subset b; -1 for a sample outside the subset."""


def recall_of_subsets(
    real_ND: Vectors, made_MD: Vectors, kept_BM: Bools, k: int, *, spread: Spread = in_process
) -> Float64Array:
    """Share of the real vectors inside the manifold of each subset [B] of the samples.

    Of random halves, one ball in thousands has its k-th neighbour beyond the `reach` nearest: it then reaches
    to the last of them.
    """
    reach = min(4 * k + 8, len(made_MD) - 1)
    others = nearest_others(made_MD, reach, spread=spread)
    threshold_BM = np.array([_ranks(kept, others.index_Nk, k) for kept in kept_BM])
    real = Cloud.of(real_ND)
    none_N = np.full(len(real), -np.inf)
    balls = Balls(real, Cloud.of(made_MD, real.centre_D), none_N, others.squared_Nk[:, -1] * (1 + TIE))
    return _shares(_Shared(balls, others.squared_Nk, threshold_BM), spread)


def coverage_of_subsets(
    real_ND: Vectors,
    made_MD: Vectors,
    squared_radius_N: Float64Array,
    kept_BM: Bools,
    *,
    spread: Spread = in_process,
) -> Float64Array:
    """Share of the real vectors' balls that hold a sample of each subset [B]."""
    real = Cloud.of(real_ND)
    made = Cloud.of(made_MD, real.centre_D)
    balls = Balls(real, made, squared_radius_N * (1 + TIE), np.full(len(made), -np.inf))
    return _shares(_Shared(balls, np.empty((len(made), 0)), kept_BM.astype(np.int16) - 1), spread)


def _ranks(kept_M: Bools, index_MR: Int64Array, k: int) -> Int16Array:
    """The rank of each kept sample's k-th nearest kept other, counted from 0."""
    counted_MR = np.cumsum(kept_M[index_MR], axis=1)
    rank_M = (counted_MR < k).sum(axis=1)
    last = index_MR.shape[1] - 1
    return np.where(kept_M, np.minimum(rank_M, last), -1).astype(np.int16)


def _shares(shared: _Shared, spread: Spread) -> Float64Array:
    real, made = len(shared.balls.a), len(shared.balls.b)
    items = [(rows, columns) for rows in blocks(real, BLOCK) for columns in blocks(made, BLOCK)]
    inside_BN = np.zeros((len(shared.threshold_BM), real), np.bool_)
    for (rows, _), found in zip(items, spread(_of_block, shared, items), strict=True):
        inside_BN[:, slice(*rows)] |= found
    share_B: Float64Array = inside_BN.mean(axis=1)
    return share_B


def _of_block(shared: _Shared, item: tuple[Span, Span]) -> Bools:
    """Whether each real vector of the block [B, rows] is inside, by the block's samples."""
    rows, columns = item
    in_real, in_made = inside(shared.balls, rows, columns, torch.float32)
    row_P, column_P = in_made if shared.squared_MR.shape[1] else in_real
    found_BN = np.zeros((len(shared.threshold_BM), rows[1] - rows[0]), np.bool_)
    if not len(row_P):
        return found_BN
    order_P = np.argsort(row_P, kind="stable")
    row_P, column_P = row_P[order_P], column_P[order_P]
    rank_P = _rank(shared, rows, columns, row_P, column_P)
    row_U, first_U = np.unique(row_P, return_index=True)
    size = max(1, CHUNK // len(row_P))
    for start, stop in blocks(len(found_BN), size):
        inside_BP = rank_P <= shared.threshold_BM[start:stop, column_P + columns[0]]
        found_BN[start:stop, row_U] = np.logical_or.reduceat(inside_BP, first_U, axis=1)
    return found_BN


def _rank(shared: _Shared, rows: Span, columns: Span, row_P: Int64Array, column_P: Int64Array) -> Int64Array:
    """How many of the sample's nearest others are nearer to it than the real vector is."""
    if not shared.squared_MR.shape[1]:
        return np.zeros(len(row_P), np.int64)
    real, made = shared.balls.a, shared.balls.b
    if len(row_P) > EXACT * (rows[1] - rows[0]) * (columns[1] - columns[0]):
        squared = rounded_squared(real, rows, made, columns, torch.float64)
        squared_P: Float64Array = squared.numpy()[row_P, column_P]
    else:
        squared_P = exact_squared(real.x_ND, made.x_ND, row_P + rows[0], column_P + columns[0])
    rank_P = np.zeros(len(row_P), np.int64)
    for place in range(shared.squared_MR.shape[1]):
        rank_P += shared.squared_MR[column_P + columns[0], place] * (1 + TIE) < squared_P
    return rank_P

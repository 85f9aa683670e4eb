"""The k nearest neighbours of every vector, among the other vectors of its set or in another set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sfumato.evaluation.neighbours.cloud import BLOCK, Cloud, Vectors, blocks, exact_squared, rounded_squared
from sfumato.evaluation.parallel_map import Spread, in_process
from sfumato.evaluation.statistics import Float64Array, Int64Array

SPARE = 5
"""Candidates kept beyond k, so that rounding seldom leaves open who is among the k nearest."""

Span = tuple[int, int]
Found = tuple[int, npt.NDArray[np.float64], Int64Array]
"""First row, rounded squared distances [B, keep] of its best candidates so far, and their rows."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Squared distances [N, k] in float64, nearest first, and the neighbours' rows [N, k]."""

    squared_Nk: Float64Array
    index_Nk: Int64Array


@dataclass(frozen=True, slots=True)
class _Search:
    """Shared by all parts of a search. `self_N`: the row of `support` that is the query itself, or -1."""

    query: Cloud
    support: Cloud
    self_N: Int64Array
    symmetric: bool
    keep: int
    dtype: torch.dtype


def nearest_others(x_ND: Vectors, k: int, *, spread: Spread = in_process, block: int = BLOCK) -> Neighbours:
    """The k nearest other vectors of the same set. Raises ValueError when N <= k."""
    if len(x_ND) <= k:
        raise ValueError(f"the {k}-th nearest neighbour needs more than {k} samples, got {len(x_ND)}")
    cloud = Cloud.of(x_ND)
    return _nearest(cloud, cloud, np.arange(len(cloud)), k, spread, block)


def nearest_in(
    query_ND: Vectors, support_MD: Vectors, k: int = 1, *, spread: Spread = in_process, block: int = BLOCK
) -> Neighbours:
    """The k nearest vectors of `support` to every vector of `query`. Raises ValueError when M < k."""
    if len(support_MD) < k:
        raise ValueError(f"{k} nearest neighbours need {k} samples or more, got {len(support_MD)}")
    support = Cloud.of(support_MD)
    query = Cloud.of(query_ND, support.centre_D)
    return _nearest(query, support, np.full(len(query), -1), k, spread, block)


def _nearest(
    query: Cloud, support: Cloud, self_N: Int64Array, k: int, spread: Spread, block: int
) -> Neighbours:
    """Candidates in float32; rows that its rounding leaves open again in float64; then row by row."""
    rows_R = np.arange(len(query))
    result = Neighbours(np.empty((len(query), k)), np.empty((len(query), k), dtype=np.int64))
    for dtype in (torch.float32, torch.float64):
        part = query if len(rows_R) == len(query) else query.rows(rows_R)
        symmetric = part is support
        search = _Search(part, support, self_N[rows_R], symmetric, min(k + SPARE, len(support)), dtype)
        found, settled_R = _settle(search, k, spread, block)
        result.squared_Nk[rows_R], result.index_Nk[rows_R] = found.squared_Nk, found.index_Nk
        rows_R = rows_R[~settled_R]
        if not len(rows_R):
            return result
    for row in rows_R.tolist():
        squared_M = _all_squared(query, support, row, int(self_N[row]))
        index_k = np.argsort(squared_M, kind="stable")[:k]
        result.squared_Nk[row], result.index_Nk[row] = squared_M[index_k], index_k
    return result


def _all_squared(query: Cloud, support: Cloud, row: int, itself: int) -> Float64Array:
    every = np.arange(len(support))
    squared_M = exact_squared(query.x_ND, support.x_ND, np.full(len(support), row), every)
    if itself >= 0:
        squared_M[itself] = np.inf
    return squared_M


def _settle(search: _Search, k: int, spread: Spread, block: int) -> tuple[Neighbours, npt.NDArray[np.bool_]]:
    """The k nearest among the candidates, exactly, and for which rows no other vector can be nearer."""
    rows = list(blocks(len(search.query), block))
    columns = list(blocks(len(search.support), block))
    items = [(i, j) for i in rows for j in columns if i <= j or not search.symmetric]
    best = _Best(len(search.query), search.keep)
    for found in spread(_candidates, search, items):
        for part in found:
            best.merge(part)
    neighbours = Neighbours(
        np.empty((len(search.query), search.keep)), np.empty((len(search.query), search.keep), np.int64)
    )
    slack_N = search.query.slack_N(search.dtype) + search.support.slack_N(search.dtype).max()
    shared = (search.query.x_ND, search.support.x_ND, best.possible(k, slack_N))
    for (start, stop), (squared, index) in zip(rows, spread(_exact, shared, rows), strict=True):
        neighbours.squared_Nk[start:stop], neighbours.index_Nk[start:stop] = squared, index
    # Nothing outside the candidates is nearer than the farthest of them, less the rounding.
    beyond_N = best.squared_NK.max(axis=1) - slack_N
    kth_N = neighbours.squared_Nk[:, k - 1]
    others = len(search.support) - bool(search.self_N.max() >= 0)
    settled_N = (kth_N <= beyond_N) | (kth_N == 0) | (search.keep >= others)
    return Neighbours(neighbours.squared_Nk[:, :k], neighbours.index_Nk[:, :k]), settled_N


class _Best:
    """The best `keep` candidates [N, keep] of every row so far."""

    def __init__(self, rows: int, keep: int) -> None:
        self.squared_NK = np.full((rows, keep), np.inf)
        self.index_NK = np.full((rows, keep), -1, dtype=np.int64)

    def merge(self, found: Found) -> None:
        """Merges a part's result. The order of merging matters only if rounded distances are equal."""
        start, squared, index = found
        rows = slice(start, start + len(squared))
        both = np.concatenate([self.squared_NK[rows], squared], axis=1)
        who = np.concatenate([self.index_NK[rows], index], axis=1)
        order = np.argsort(both, axis=1, kind="stable")[:, : self.squared_NK.shape[1]]
        self.squared_NK[rows] = np.take_along_axis(both, order, axis=1)
        self.index_NK[rows] = np.take_along_axis(who, order, axis=1)

    def possible(self, k: int, slack_N: Float64Array) -> Int64Array:
        """The candidates [N, keep] that may be among the k nearest; -1 for those too far away."""
        kth_N1 = self.squared_NK[:, [min(k, self.squared_NK.shape[1]) - 1]]
        return np.where(self.squared_NK <= kth_N1 + 2 * slack_N[:, None], self.index_NK, -1)


def _candidates(search: _Search, item: tuple[Span, Span]) -> list[Found]:
    """The best candidates of the block's rows and, of a symmetric search, of its columns too."""
    rows, columns = item
    squared = rounded_squared(search.query, rows, search.support, columns, search.dtype)
    itself = torch.from_numpy(search.self_N[slice(*rows)]) - columns[0]
    inside = ((itself >= 0) & (itself < columns[1] - columns[0])).nonzero().flatten()
    squared[inside, itself[inside]] = torch.inf
    found = [_smallest(squared, rows[0], columns[0], search.keep)]
    if search.symmetric and rows != columns:
        found.append(_smallest(squared.T.contiguous(), columns[0], rows[0], search.keep))
    return found


def _smallest(squared: Tensor, first_row: int, first_column: int, keep: int) -> Found:
    top = squared.topk(min(keep, squared.shape[1]), dim=1, largest=False, sorted=False)
    # A row is not its own neighbour.
    index = torch.where(top.values.isinf(), -1, top.indices + first_column)
    return first_row, top.values.double().numpy(), index.numpy()


def _exact(shared: tuple[Vectors, Vectors, Int64Array], span: Span) -> tuple[Float64Array, Int64Array]:
    """Candidates of some rows [B, keep] with their exact squared distances, nearest first."""
    query_ND, support_MD, index_NK = shared
    index = index_NK[slice(*span)]
    row_P, place_P = (index >= 0).nonzero()
    squared = np.full(index.shape, np.inf)
    squared[row_P, place_P] = exact_squared(query_ND, support_MD, row_P + span[0], index[row_P, place_P])
    order = np.lexsort((index, squared), axis=1)
    return np.take_along_axis(squared, order, axis=1), np.take_along_axis(index, order, axis=1)

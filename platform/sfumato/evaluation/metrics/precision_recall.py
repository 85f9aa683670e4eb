"""Improved precision and recall (Kynkäänniemi et al. 2019, eqs. 1-3).

The manifold of a set is the union of balls around its vectors, each reaching to the vector's k-th nearest
neighbour in the same set, itself excluded. Precision is the part of the generated vectors inside the
reference's manifold, recall the part of the reference inside the generated one. A ball includes its surface.
(The `prdc` package excludes it, which differs where distances tie, for example on repeated images.)

Distances are computed a block of rows against a block of columns, so memory is bounded by the block.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from sfumato.evaluation.metrics.metric import BaseMetric, FeatureSet, Metric, MetricOptions, MetricResult
from sfumato.evaluation.statistics import Float32Array, Float64Array

BLOCK = 1024
TIE = 1e-12
"""Rounding of |a|^2 + |b|^2 - 2ab in float64, relative to |a|^2 + |b|^2, with room to spare: two equal
distances that were computed in different blocks must still compare as equal."""


def squared_distances(a_ND: Float64Array, b_MD: Float64Array) -> Float64Array:
    """Squared Euclidean distances [N, M]; exactly 0 for equal rows."""
    scale_NM = np.square(a_ND).sum(1)[:, None] + np.square(b_MD).sum(1)[None, :]
    squared_NM: Float64Array = scale_NM - 2 * (a_ND @ b_MD.T)
    squared_NM[squared_NM <= TIE * scale_NM] = 0.0
    return squared_NM


def _blocks(x_ND: Float64Array, block: int) -> Iterator[tuple[int, Float64Array]]:
    for start in range(0, len(x_ND), block):
        yield start, x_ND[start : start + block]


def squared_radii(x_ND: Float64Array, k: int, block: int = BLOCK) -> Float64Array:
    """Squared distance [N] of every row to its k-th nearest other row. Raises ValueError when N <= k."""
    if len(x_ND) <= k:
        raise ValueError(f"the {k}-th nearest neighbour needs more than {k} samples, got {len(x_ND)}")
    radius_N = np.empty(len(x_ND))
    for row, a in _blocks(x_ND, block):
        nearest = np.full((len(a), k), np.inf)
        for column, b in _blocks(x_ND, block):
            squared = squared_distances(a, b)
            if row == column:
                np.fill_diagonal(squared, np.inf)
            candidates = np.concatenate([nearest, squared], axis=1)
            nearest = np.partition(candidates, k - 1, axis=1)[:, :k]
        radius_N[row : row + len(a)] = nearest.max(axis=1)
    return radius_N


def inside_manifold(
    query_MD: Float64Array, support_ND: Float64Array, radius_N: Float64Array, block: int = BLOCK
) -> npt.NDArray[np.bool_]:
    """Which queries [M] lie in at least one ball around the support, whose squared radii are `radius_N`."""
    inside_M = np.zeros(len(query_MD), dtype=np.bool_)
    slack = TIE * (np.square(query_MD).sum(1).max() + np.square(support_ND).sum(1).max())
    for row, a in _blocks(query_MD, block):
        hit = np.zeros(len(a), dtype=np.bool_)
        for column, b in _blocks(support_ND, block):
            hit |= (squared_distances(a, b) <= radius_N[column : column + len(b)] + slack).any(axis=1)
        inside_M[row : row + len(a)] = hit
    return inside_M


def coverage(query_MD: Float32Array, support_ND: Float32Array, k: int, block: int = BLOCK) -> tuple[int, int]:
    """How many of the queries lie in the k-nearest-neighbour manifold of the support, and of how many.

    Both are shifted by the support's mean, which changes no distance and saves digits.
    """
    support = support_ND.astype(np.float64)
    centre_D = support.mean(axis=0)
    support -= centre_D
    query = query_MD.astype(np.float64) - centre_D
    inside_M = inside_manifold(query, support, squared_radii(support, k, block), block)
    return int(inside_M.sum()), len(inside_M)


class ManifoldCoverage(BaseMetric):
    """Precision (generated inside reference) or recall (reference inside generated), in [0, 1]."""

    higher_is_better = True
    in_auto = True

    def __init__(self, name: str, *, generated_is_support: bool) -> None:
        self.name = name
        self._generated_is_support = generated_is_support

    def least_samples(self, options: MetricOptions) -> int:
        return options.k + 1

    def compute(self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> MetricResult:
        support, query = (generated, reference) if self._generated_is_support else (reference, generated)
        inside, total = coverage(query.embedding_ND, support.embedding_ND, options.k)
        return MetricResult(self.name, inside / total, {"inside": inside, "of": total, "k": options.k})


METRICS: tuple[Metric, ...] = (
    ManifoldCoverage("precision", generated_is_support=False),
    ManifoldCoverage("recall", generated_is_support=True),
)

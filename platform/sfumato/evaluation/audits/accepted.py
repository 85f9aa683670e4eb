"""Which generated images may stand for real ones of their class: those that a classifier gives the class,
that lie where the class lies, and that repeat no image of it.

Distances are between a classifier's features, to the nearest real image of the class. What is usual is known
from the real images themselves, each with its nearest other one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sfumato.evaluation.features.extractor import Extracted
from sfumato.evaluation.statistics import Float32Array, Float64Array, Int64Array

AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Limits:
    """What is asked of an image."""

    agreement: float
    """Least probability of its class, by the classifier."""
    nearest: float
    """Share of real images that have a nearer neighbour than an image may have; nearer ones are copies."""
    farthest: float
    """The same of the distance that it may have at most."""


@dataclass(frozen=True, slots=True)
class OfClass:
    """The real images of one class, and how near they lie to one another."""

    embedding_MD: Float32Array
    low: float
    high: float

    @classmethod
    def of(cls, embedding_MD: Float32Array, limits: Limits) -> OfClass:
        """From features [M, D] of at least two images."""
        own_M = nearest(embedding_MD, embedding_MD, itself=True)
        low, high = np.quantile(own_M, [limits.nearest, limits.farthest])
        return cls(embedding_MD, float(low), float(high))


def judged(
    found: Extracted, label: int, real: OfClass, limits: Limits
) -> tuple[Float64Array, Float64Array, Int64Array]:
    """The probability of the class and the distance of each image [N], and the numbers of those accepted."""
    assert found.logits_NK is not None, "of a classifier"
    logits_NK = found.logits_NK.astype(np.float64)
    shares_NK = np.exp(logits_NK - logits_NK.max(axis=1, keepdims=True))
    agreement_N: Float64Array = shares_NK[:, label] / shares_NK.sum(axis=1)
    distance_N = nearest(found.embedding_ND, real.embedding_MD)
    right_N = logits_NK.argmax(axis=1) == label
    fits_N = (distance_N >= real.low) & (distance_N <= real.high) & (agreement_N >= limits.agreement)
    return agreement_N, distance_N, np.flatnonzero(right_N & fits_N).astype(np.int64)


def nearest(rows_ND: Float32Array, others_MD: Float32Array, *, itself: bool = False) -> Float64Array:
    """The distance of each row to the nearest of the others [N]; with `itself`, they are the same rows."""
    found = []
    others = others_MD.astype(np.float64)
    for first in range(0, len(rows_ND), AT_ONCE):
        part = rows_ND[first : first + AT_ONCE].astype(np.float64)
        square_NM = np.square(part).sum(1)[:, None] + np.square(others).sum(1)[None] - 2 * part @ others.T
        if itself:
            square_NM[np.arange(len(part)), first + np.arange(len(part))] = np.inf
        found.append(np.sqrt(np.maximum(square_NM.min(axis=1), 0)))
    return np.concatenate(found)

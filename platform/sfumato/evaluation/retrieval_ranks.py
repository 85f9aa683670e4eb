"""The place of every caption's own image among others, when images are sorted by how well they fit it."""

from __future__ import annotations

import numpy as np

from sfumato.evaluation.statistics import Float32Array, Float64Array, Int64Array

SAME = 1 - 1e-5
"""Cosine from which two captions are one and the same text."""
ROUNDING = 1e-9
"""Two cosines that differ by less are equal: libraries of linear algebra round each row in their own way."""


def ranks(image_ND: Float32Array, text_ND: Float32Array, pool: int) -> Int64Array:
    """For each caption the number [N] of images in its pool that fit it as well as its own, or better.

    Pools are `pool` consecutive rows; the last one is filled up with rows before it. Images with the same
    caption do not count, since they are as right.
    """
    image, text = _unit(image_ND), _unit(text_ND)
    pool = min(pool, len(image))
    found = np.zeros(len(image), np.int64)
    for first in range(0, len(image), pool):
        rows = np.arange(min(first, len(image) - pool), min(first, len(image) - pool) + pool)
        fit_TI = text[rows] @ image[rows].T
        others_TI = text[rows] @ text[rows].T < SAME
        better_TI = (fit_TI >= np.diag(fit_TI)[:, None] - ROUNDING) & others_TI
        found[rows[rows >= first]] = better_TI.sum(1)[rows >= first]
    return found


def _unit(vectors_ND: Float32Array) -> Float64Array:
    vector_ND = vectors_ND.astype(np.float64)
    unit: Float64Array = vector_ND / np.maximum(np.linalg.norm(vector_ND, axis=1, keepdims=True), 1e-12)
    return unit

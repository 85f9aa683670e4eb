"""Deals samples into groups at random, each with its share of every class."""

from __future__ import annotations

import numpy as np

from sfumato.evaluation.statistics import Int64Array


def dealt(rows: int, groups: int, rng: np.random.Generator, label_N: Int64Array | None = None) -> Int64Array:
    """The group [N] of each sample; groups differ by one sample at most, also within a class.

    The order is random because that of samples is not: an evaluation deals classes in turn, so i mod 10 could
    put each of ten classes into a group of its own.
    """
    order_N = rng.permutation(rows)
    if label_N is not None:
        order_N = order_N[np.argsort(label_N[order_N], kind="stable")]
    group_N = np.empty(rows, np.int64)
    group_N[order_N] = np.arange(rows) % groups
    return group_N

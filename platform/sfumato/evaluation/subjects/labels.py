"""The class requested for each generated sample.

Sample i's class depends only on i and the reference's class counts, so that more samples extend the
list and never change it. Every prefix follows the reference's frequencies closely (smooth weighted round
robin), and as many samples as the reference has images give exactly its counts. With the same mix of
classes on both sides, a distance between the sets does not measure the mix.
"""

from __future__ import annotations

import numpy as np

from sfumato.evaluation.statistics import Int64Array


def stratified_labels(counts_K: Int64Array, num: int) -> Int64Array:
    """The first `num` labels [num] int64, for classes that the reference has `counts_K` images of."""
    total = int(counts_K.sum())
    if total <= 0:
        raise ValueError("no labelled images to take class frequencies from")
    credit_K = np.zeros_like(counts_K)
    label_N = np.empty(num, dtype=np.int64)
    for index in range(num):
        credit_K += counts_K
        label = int(credit_K.argmax())
        credit_K[label] -= total
        label_N[index] = label
    return label_N

"""Whether a data set is sorted by class, so that windows and batches have few classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

WINDOW = 2048
"""The default of `data.shuffle_window`."""
_LEAST = 0.5
"""Sets whose windows have less than this share of the expected number of classes are reported."""


def warning(labels: Sequence[NDArray[np.int64]], classes: int, window: int = WINDOW) -> str | None:
    """A line if windows of these shards' labels have far fewer classes than windows of mixed samples would.

    Samples without a class (below 0) do not count.
    """
    known = [
        part[(part >= 0) & (part < classes)]
        for shard in labels
        for part in np.split(shard, range(window, len(shard), window))
    ]
    known = [part for part in known if len(part)]
    if not known:
        return None
    counts_K = np.bincount(np.concatenate(known), minlength=classes)
    share_K = counts_K / counts_K.sum()
    found = float(np.mean([len(np.unique(part)) for part in known]))
    expected = float(np.mean([np.sum(1 - (1 - share_K) ** len(part)) for part in known]))
    if found >= _LEAST * expected:
        return None
    return (
        f"the samples are sorted by class: {window:,} consecutive ones have {found:.0f} classes on average, "
        f"where {expected:.0f} are to be expected, and batches are as uneven: train with data.shuffle_chunk=8"
    )

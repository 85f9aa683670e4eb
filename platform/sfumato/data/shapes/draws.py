"""Random numbers that depend on a seed and a row alone, for many rows at once.

SplitMix64 (Steele, Lea and Flood 2014): its mixing function applied to a counter.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sfumato.core.seeds import derive

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_BITS = 53


def uniforms(seed: int, name: str, row_N: I64, count: int) -> F64:
    """Numbers [N, count] in [0, 1); row n depends only on (seed, name, row_N[n])."""
    start = np.uint64(derive("shapes", seed, name))
    column_K = np.arange(1, count + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        row_state_N = _mixed(start + row_N.astype(np.uint64) * _GOLDEN)
        state_NK = _mixed(row_state_N[:, None] + column_K * _GOLDEN)
    result: F64 = (state_NK >> np.uint64(64 - _BITS)).astype(np.float64) * 2.0**-_BITS
    return result


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = state ^ (state >> np.uint64(31))
    return mixed

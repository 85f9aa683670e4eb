"""Shares of kinds of images against those wanted, with intervals and what chance gives.

The distance is total variation, half the sum of the absolute differences: the share of the samples that
would have to be others. Samples vary, so it is above 0 without any bias: `by_chance` is its mean for as many
draws from the target itself, `p` that of a chi-squared test. Intervals are Wilson's where there are two
values, and otherwise Goodman's simultaneous ones (1965), all of which hold at once with the confidence;
`beyond` lists the values whose target is outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sfumato.core.seeds import derive
from sfumato.evaluation.statistics import Float64Array, Int64Array

CONFIDENCE = 0.95
FEWEST = 10
"""Samples of a group, below which its shares are not listed."""
_DRAWS = 1_000


def compared(count_K: Int64Array, target_K: Float64Array, names: Sequence[str], seed: int) -> dict[str, Any]:
    """Counts against target shares, as plain data."""
    from scipy import stats

    total = int(count_K.sum())
    share_K, (low_K, high_K) = count_K / total, intervals(count_K)
    there_K = target_K > 0
    expected_K = target_K[there_K] * total
    statistic = float((np.square(count_K[there_K] - expected_K) / expected_K).sum())
    impossible = bool(count_K[~there_K].any())
    rng = np.random.default_rng(derive(seed, "bias", *names))
    drawn_SK = rng.multinomial(total, target_K / target_K.sum(), size=_DRAWS) / total
    beyond = [name for k, name in enumerate(names) if not low_K[k] <= target_K[k] <= high_K[k]]
    return {
        "images": total,
        "distance": distance(share_K, target_K),
        "by_chance": float(np.abs(drawn_SK - target_K).sum(axis=1).mean() / 2),
        "p": 0.0 if impossible else float(stats.chi2.sf(statistic, max(1, int(there_K.sum()) - 1))),
        "beyond": beyond,
        "shares": {
            name: {
                "share": float(share_K[k]),
                "low": float(low_K[k]),
                "high": float(high_K[k]),
                "target": float(target_K[k]),
            }
            for k, name in enumerate(names)
        },
    }


def distance(share_K: Float64Array, target_K: Float64Array) -> float:
    """Total variation."""
    return float(np.abs(share_K - target_K).sum() / 2)


def intervals(count_K: Int64Array, confidence: float = CONFIDENCE) -> tuple[Float64Array, Float64Array]:
    """Goodman's simultaneous intervals of multinomial shares; of two values Wilson's."""
    from scipy import stats

    kinds, total = len(count_K), count_K.sum()
    a = stats.chi2.ppf(1 - (1 - confidence) / (kinds if kinds > 2 else 1), 1)
    middle_K = a + 2 * count_K
    reach_K = np.sqrt(a * (a + 4 * count_K * (total - count_K) / total))
    return (middle_K - reach_K) / (2 * (total + a)), (middle_K + reach_K) / (2 * (total + a))

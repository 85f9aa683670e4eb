"""How well a score tells two sets apart: area under the ROC curve, and true positives at few false ones.

The area is the probability that a positive's score is above a negative's, ties at half (the Mann-Whitney
statistic). Its standard error is DeLong's (DeLong et al. 1988, as ranks: Sun & Xu 2014). Its interval is
Newcombe's (2006, method 5), a score interval after Hanley & McNeil that stays right near 1, where DeLong's
has no width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sfumato.evaluation.statistics import Float64Array

_EDGE = 1e-9


@dataclass(frozen=True, slots=True)
class Area:
    """The area under the curve in 0 to 1, its interval, and DeLong's standard error."""

    value: float
    low: float
    high: float
    stderr: float
    positives: int
    negatives: int

    def told(self) -> dict[str, float]:
        """As plain data."""
        return {
            "auroc": self.value,
            "low": self.low,
            "high": self.high,
            "stderr": self.stderr,
            "positives": self.positives,
            "negatives": self.negatives,
        }


def area(positive_N: Float64Array, negative_M: Float64Array, confidence: float = 0.95) -> Area:
    """Of scores that should be higher for positives. Raises ValueError for an empty set or a NaN."""
    from scipy import stats

    m, n = len(positive_N), len(negative_M)
    both = np.concatenate([positive_N, negative_M]).astype(np.float64)
    if not m or not n or np.isnan(both).any():
        raise ValueError(f"an area needs scores of both kinds, got {m} and {n}, some of them perhaps NaN")
    rank = stats.rankdata(both)
    above_N = (rank[:m] - stats.rankdata(both[:m])) / n
    below_M = 1 - (rank[m:] - stats.rankdata(both[m:])) / m
    value = float(above_N.mean())
    variance = _variance(above_N) / m + _variance(below_M) / n
    low, high = _score_interval(value, m, n, float(stats.norm.ppf((1 + confidence) / 2)))
    return Area(value, low, high, math.sqrt(variance), m, n)


def true_positives_at(
    positive_N: Float64Array, negative_M: Float64Array, rate: float, confidence: float = 0.95
) -> dict[str, Any]:
    """The share of positives above a threshold that at most a share `rate` of the negatives is above.

    With Wilson's interval, the threshold taken as given. Fewer than 1 / rate negatives cannot measure it: the
    threshold is then the highest of theirs, and `enough` is False.
    """
    from scipy import stats

    allowed = math.floor(rate * len(negative_M) + 1e-9)
    threshold = float(np.sort(negative_M)[::-1][allowed])
    yes = int((positive_N > threshold).sum())
    found = stats.binomtest(yes, len(positive_N)).proportion_ci(confidence, method="wilson")
    return {
        "false_positive_rate": rate,
        "true_positive_rate": yes / len(positive_N),
        "low": float(found.low),
        "high": float(found.high),
        "threshold": threshold,
        "enough": rate * len(negative_M) >= 1,
    }


def curve(positive_N: Float64Array, negative_M: Float64Array) -> tuple[Float64Array, Float64Array]:
    """False and true positive rates at every threshold, from (0, 0) to (1, 1)."""
    scores = np.concatenate([positive_N, negative_M])
    kind = np.concatenate([np.ones(len(positive_N)), np.zeros(len(negative_M))])
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)
    true_T = np.cumsum(kind[order])[last] / max(len(positive_N), 1)
    false_T = np.cumsum(1 - kind[order])[last] / max(len(negative_M), 1)
    return np.append(0.0, false_T), np.append(0.0, true_T)


def plot(curves: Mapping[str, tuple[Float64Array, Float64Array]], title: str) -> Any:
    """A figure of curves on logarithmic axes, where few false positives can be seen."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    least = 1e-4
    for name, (false_T, true_T) in curves.items():
        axes.plot(np.maximum(false_T, least), np.maximum(true_T, least), label=name, drawstyle="steps-post")
    axes.plot([least, 1], [least, 1], color="grey", linestyle=":", label="chance")
    axes.set(xscale="log", yscale="log", xlim=(least, 1), ylim=(least, 1), title=title)
    axes.set(xlabel="false positive rate", ylabel="true positive rate")
    axes.legend(loc="lower right")
    return figure


def _variance(x_N: Float64Array) -> float:
    return float(x_N.var(ddof=1)) if len(x_N) > 1 else 0.0


def _score_interval(value: float, m: int, n: int, z: float) -> tuple[float, float]:
    """All areas whose distance from the value is at most z of their own standard errors."""
    from scipy.optimize import brentq

    half = (m + n) / 2 - 1

    def beyond(area: float) -> float:
        spread = 1 + half * ((1 - area) / (2 - area) + area / (1 + area))
        return float((area - value) ** 2 - z**2 * area * (1 - area) * spread / (m * n))

    inside = min(max(value, _EDGE), 1 - _EDGE)  # at 0 and 1 the standard error is 0, a root of no use
    low = 0.0 if value <= 0 else float(brentq(beyond, 0.0, inside))
    high = 1.0 if value >= 1 else float(brentq(beyond, inside, 1.0))
    return low, high


def lines_of(rates: Sequence[Mapping[str, Any]]) -> list[str]:
    """`TPR 0.12 (0.08 to 0.17) at FPR 0.1 %`, a line for each rate."""
    return [
        f"TPR {rate['true_positive_rate']:.3f} ({rate['low']:.3f} to {rate['high']:.3f}) at FPR "
        f"{rate['false_positive_rate']:.1%}"
        + ("" if rate["enough"] else " (too few negatives for this rate)")
        for rate in rates
    ]

"""One file a metric. To add one, add a file that lists its metrics in `METRICS`; nothing else changes."""

from __future__ import annotations

import sys
from functools import cache

from sfumato.evaluation.metrics.metric import Metric, PairMetric
from sfumato.evaluation.registry import discover


@cache
def all_metrics() -> dict[str, Metric]:
    """Every metric by name."""
    return discover(sys.modules[__name__], "METRICS")


@cache
def all_pair_metrics() -> dict[str, PairMetric]:
    """Every metric of reconstructions by name."""
    return discover(sys.modules[__name__], "PAIR_METRICS")

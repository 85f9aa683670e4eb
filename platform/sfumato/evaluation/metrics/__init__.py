"""One file a metric. To add one, add a file that lists its metrics in `METRICS`; nothing else changes."""

from __future__ import annotations

import sys
from functools import cache

from sfumato.evaluation.metrics.metric import Metric
from sfumato.evaluation.registry import discover


@cache
def all_metrics() -> dict[str, Metric]:
    """Every metric by name."""
    return discover(sys.modules[__name__], "METRICS")

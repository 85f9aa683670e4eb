"""One file per metric. To add one, add a file that lists its metrics in `METRICS`; nothing else changes.

Metrics outside this folder are named by import path, `package.module:MyMetric`.
"""

from __future__ import annotations

from functools import cache

from sfumato.core.finding import Members
from sfumato.evaluation.metrics.metric import Metric, PairMetric

_METRICS: Members[Metric] = Members("sfumato.evaluation.metrics", "METRICS")
_PAIRS: Members[PairMetric] = Members("sfumato.evaluation.metrics", "PAIR_METRICS")


@cache
def all_metrics() -> dict[str, Metric]:
    """Every metric by name."""
    return _METRICS.all()


@cache
def all_pair_metrics() -> dict[str, PairMetric]:
    """Every metric of reconstructions by name."""
    return _PAIRS.all()


@cache
def own_metric(path: str) -> Metric | PairMetric:
    """The metric at an import path. Raises ConfigError if it is not a metric."""
    found: Metric | PairMetric = _METRICS.imported(path, ("compute", "compare"))
    return found

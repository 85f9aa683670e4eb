"""Improved precision and recall (Kynkäänniemi et al. 2019, eqs. 1-2).

The manifold of a set is the union of balls around its vectors, each reaching to the vector's k-th nearest
neighbour in the same set, itself excluded. Precision is the share of the generated vectors inside the
reference's manifold, recall the share of the reference inside the generated one. A ball includes its surface.
(The `prdc` package excludes it, which differs when distances tie, for example on repeated images.)
"""

from __future__ import annotations

import numpy as np

from sfumato.evaluation.metrics.metric import BaseMetric, FeatureSet, Metric, MetricOptions, MetricResult
from sfumato.evaluation.neighbours.sets import mutual


class Precision(BaseMetric):
    """Share of the generated vectors inside the reference's manifold, in [0, 1]."""

    name = "precision"
    higher_is_better = True
    in_auto = True

    def least_samples(self, options: MetricOptions) -> int:
        """A k-th neighbour needs k + 1 vectors."""
        return options.k + 1

    def compute(self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> MetricResult:
        inside_M = mutual(reference, generated, options).balls_of_a_M > 0
        return _share(self.name, inside_M, options)


class Recall(Precision):
    """Share of the reference's vectors inside the generated manifold, in [0, 1]."""

    name = "recall"

    def compute(self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> MetricResult:
        return _share(self.name, mutual(reference, generated, options).a_inside_N, options)


def _share(name: str, inside: np.typing.NDArray[np.bool_], options: MetricOptions) -> MetricResult:
    details = {"inside": int(inside.sum()), "of": len(inside), "k": options.k}
    return MetricResult(name, float(inside.mean()), details, inside.astype(np.float64))


METRICS: tuple[Metric, ...] = (Precision(), Recall())

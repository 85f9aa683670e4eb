"""Density and coverage (Naeem et al. 2020, eqs. 4-5).

Precision counts a sample once, however few outliers of the reference hold it, and recall builds its manifold
from the generated set, outliers included. Density and coverage use only the reference's balls. Density counts
how many hold a sample, over k (1 is expected for samples of the reference's own distribution, more is
possible); coverage is the share of the reference's balls that hold a sample. Balls include their surface.
"""

from __future__ import annotations

import numpy as np

from sfumato.evaluation.metrics.metric import BaseMetric, FeatureSet, Metric, MetricOptions, MetricResult
from sfumato.evaluation.neighbours.sets import mutual


class Density(BaseMetric):
    """Mean number of the reference's balls around a generated vector, over k; 0 and up."""

    name = "density"
    higher_is_better = True

    def least_samples(self, options: MetricOptions) -> int:
        """A k-th neighbour needs k + 1 vectors."""
        return options.k + 1

    def compute(self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> MetricResult:
        density_M = mutual(reference, generated, options).balls_of_a_M / options.k
        return MetricResult(self.name, float(density_M.mean()), {"k": options.k}, density_M)


class Coverage(Density):
    """Share of the reference's balls that hold a generated vector, in [0, 1]."""

    name = "coverage"

    def compute(self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> MetricResult:
        held_N = mutual(reference, generated, options).a_holds_N
        details = {"covered": int(held_N.sum()), "of": len(held_N), "k": options.k}
        return MetricResult(self.name, float(held_N.mean()), details, held_N.astype(np.float64))


METRICS: tuple[Metric, ...] = (Density(), Coverage())

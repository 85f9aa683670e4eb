"""Authenticity (Alaa et al. 2022, section 3.3): the share of samples that are not copies of a training image.

A sample is authentic when it is farther from its nearest training image than that image's own nearest
neighbour in the training set does: a noisy copy would be closer. A model that draws from the true
distribution gets about one half, not 1, when it has as many samples as there are training images.
"""

from __future__ import annotations

import numpy as np

from sfumato.evaluation.metrics.metric import (
    BaseMetric,
    FeatureSet,
    Metric,
    MetricOptions,
    MetricResult,
    Topic,
)
from sfumato.evaluation.neighbours.sets import nearest_reference, own_neighbours


class Authenticity(BaseMetric):
    """In [0, 1], higher is better. The reference is taken for the training images."""

    name = "authenticity"
    topic: Topic = "memorisation"
    higher_is_better = True

    def least_samples(self, options: MetricOptions) -> int:
        """A k-th neighbour needs k + 1 vectors."""
        return options.k + 1

    def compute(self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> MetricResult:
        near = nearest_reference(reference, generated, options)
        own_N = own_neighbours(reference, options).squared_Nk[:, 0]
        authentic_M = near.squared_Nk[:, 0] > own_N[near.index_Nk[:, 0]]
        details = {"authentic": int(authentic_M.sum()), "of": len(authentic_M)}
        return MetricResult(self.name, float(authentic_M.mean()), details, authentic_M.astype(np.float64))


METRICS: tuple[Metric, ...] = (Authenticity(),)

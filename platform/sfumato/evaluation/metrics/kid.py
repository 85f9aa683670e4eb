"""Kernel Inception distance (Bińkowski et al. 2018): unbiased squared MMD under (x.y / D + 1)^3.

The figure is the mean over random subsets, as everybody reports it, with the standard deviation over the
subsets. The subsets are those that torch-fidelity draws from the same seed. The details hold the estimate on
all samples too, which has the smallest variance.
"""

from __future__ import annotations

import numpy as np
import torch

from sfumato.evaluation.kernels import cubic, unbiased_mmd2
from sfumato.evaluation.metrics.metric import BaseMetric, FeatureSet, Metric, MetricOptions, MetricResult
from sfumato.evaluation.statistics import Float32Array, Float64Array


def kernel_distance(a_ND: Float32Array, b_MD: Float32Array) -> float:
    """Unbiased squared MMD of all samples, in blocks."""
    return unbiased_mmd2(torch.from_numpy(a_ND), torch.from_numpy(b_MD), cubic(a_ND.shape[1]))


def subset_distances(
    a_ND: Float32Array, b_MD: Float32Array, *, subsets: int, size: int, seed: int
) -> Float64Array:
    """Unbiased squared MMDs [subsets] of random subsets of `size` rows each.

    Raises ValueError when a set has fewer rows.
    """
    if min(len(a_ND), len(b_MD)) < size:
        raise ValueError(f"subsets of {size} need {size} samples of either set, got {len(a_ND)}, {len(b_MD)}")
    a, b, kernel = torch.from_numpy(a_ND), torch.from_numpy(b_MD), cubic(a_ND.shape[1])
    # NumPy's old generator: the draws, and so the figures, are then torch-fidelity's.
    rng = np.random.RandomState(seed)
    distance_S = np.empty(subsets)
    for subset in range(subsets):
        rows_a = torch.from_numpy(rng.choice(len(a), size, replace=False))
        rows_b = torch.from_numpy(rng.choice(len(b), size, replace=False))
        distance_S[subset] = unbiased_mmd2(a[rows_a], b[rows_b], kernel)
    return distance_S


class KernelDistance(BaseMetric):
    """Lower is better; near 0, and on either side of it, for samples of the reference's own distribution."""

    name = "kid"
    always_suffixed = True
    published = "kid"

    def least_samples(self, options: MetricOptions) -> int:
        """One subset."""
        return options.settings.kid_subset_size

    def compute(self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> MetricResult:
        settings = options.settings
        distance_S = subset_distances(
            generated.embedding_ND,
            reference.embedding_ND,
            subsets=settings.kid_subsets,
            size=settings.kid_subset_size,
            seed=settings.seed,
        )
        details = {
            "subset_std": float(distance_S.std()),
            "all_samples": kernel_distance(generated.embedding_ND, reference.embedding_ND),
            "subsets": settings.kid_subsets,
            "subset_size": settings.kid_subset_size,
        }
        error = float(distance_S.std()) / settings.kid_subsets**0.5
        return MetricResult(self.name, float(distance_S.mean()), details, error=error)


METRICS: tuple[Metric, ...] = (KernelDistance(),)

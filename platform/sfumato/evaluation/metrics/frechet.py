"""Fréchet distance between two sets of features (Heusel et al. 2017, eq. 6; Dowson & Landau 1982).

    d^2 = |mu_1 - mu_2|^2 + tr(S_1) + tr(S_2) - 2 tr((S_1 S_2)^{1/2})

With S = L L^T, tr((S_1 S_2)^{1/2}) = tr((S_1^{1/2} S_2 S_1^{1/2})^{1/2}) is the sum of the singular values
of L_1^T L_2. That form needs no root of a matrix product: it stays real and accurate when the covariances
are rank-deficient (fewer samples than dimensions), where taking roots of the product's eigenvalues turns
rounding errors of size e into errors of size sqrt(e) in every null direction.

On InceptionV3 pool3 features this number is called FID; on any other features it is `fd_<features>`.
"""

from __future__ import annotations

import numpy as np

from sfumato.evaluation.metrics.metric import BaseMetric, FeatureSet, Metric, MetricOptions, MetricResult
from sfumato.evaluation.statistics import Float64Array, Moments


def factor(covariance_DD: Float64Array) -> Float64Array:
    """L [D, R] with L L^T = covariance, R its numerical rank, by symmetric eigendecomposition."""
    eigenvalue_D, eigenvector_DD = np.linalg.eigh(covariance_DD)
    floor = max(float(eigenvalue_D[-1]), 0.0) * len(eigenvalue_D) * np.finfo(np.float64).eps
    keep_D = eigenvalue_D > floor
    root_DR: Float64Array = eigenvector_DD[:, keep_D] * np.sqrt(eigenvalue_D[keep_D])
    return root_DR


def frechet_distance(a: Moments, b: Moments) -> float:
    """The squared Fréchet distance of the Gaussians with these moments; never negative.

    Raises ValueError when the dimensions differ or a side has fewer than 2 samples.
    """
    if a.mean_D.shape != b.mean_D.shape:
        raise ValueError(f"feature dimensions differ: {len(a.mean_D)} and {len(b.mean_D)}")
    covariance_a, covariance_b = a.covariance_DD, b.covariance_DD
    cross = factor(covariance_a).T @ factor(covariance_b)
    root_trace = float(np.linalg.svd(cross, compute_uv=False).sum()) if cross.size else 0.0
    shift = float(np.square(a.mean_D - b.mean_D).sum())
    spread = float(np.trace(covariance_a) + np.trace(covariance_b)) - 2 * root_trace
    return max(0.0, shift + spread)


class FrechetDistance(BaseMetric):
    """Lower is better; 0 for equal means and covariances. It falls with the number of samples (bias)."""

    name = "fd"
    in_auto = True
    always_suffixed = True
    published = "fid"

    def least_samples(self, options: MetricOptions) -> int:
        return 2

    def compute(self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> MetricResult:
        dim = reference.embedding_ND.shape[1]
        details = {
            "dimensions": dim,
            "reference_samples": len(reference),
            "generated_samples": len(generated),
            "rank_deficient": min(len(reference), len(generated)) <= dim,
        }
        return MetricResult(self.name, frechet_distance(reference.moments, generated.moments), details)


METRICS: tuple[Metric, ...] = (FrechetDistance(),)

"""Fréchet distance between two sets of features (Heusel et al. 2017, eq. 6; Dowson & Landau 1982).

    d^2 = |mu_1 - mu_2|^2 + tr(S_1) + tr(S_2) - 2 tr((S_1 S_2)^{1/2})

With S = L L^T, tr((S_1 S_2)^{1/2}) is the sum of the singular values of L_1^T L_2, or of the roots of the
eigenvalues of L_1^T S_2 L_1. The second is three times as fast, with L from Cholesky, and is used if both
covariances are well conditioned. If they are not (fewer samples than dimensions), a root turns a rounding
error of size e into one of size sqrt(e) in every null direction; then the first is used, which has no root,
with L from the eigenvectors of positive eigenvalue.

On InceptionV3 pool3 features this number is called FID; on any other features it is `fd_<features>`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import numpy as np
import torch

from sfumato.core.seeds import derive
from sfumato.evaluation.decisions.weakness import of_samples
from sfumato.evaluation.intervals.groups import dealt
from sfumato.evaluation.intervals.standard_errors import GROUPS, StandardError, jackknife, jackknife_of_pairs
from sfumato.evaluation.metrics.metric import BaseMetric, FeatureSet, Metric, MetricOptions, MetricResult
from sfumato.evaluation.statistics import Float64Array, Moments

WELL_CONDITIONED = 1e-9
"""Reciprocal condition (1-norm) above which roots of eigenvalues are good to 1e-9 of the trace."""
MOST_FOR_PAIRS = 512
"""Dimensions up to which groups are left out two at a time, too: 46 more distances of milliseconds."""


def factor(covariance_DD: Float64Array) -> Float64Array:
    """L [D, R] with L L^T = covariance, R its numerical rank, by symmetric eigendecomposition."""
    eigenvalue, eigenvector = torch.linalg.eigh(torch.from_numpy(covariance_DD))
    eigenvalue_D, eigenvector_DD = eigenvalue.numpy(), eigenvector.numpy()
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
    shift = float(np.square(a.mean_D - b.mean_D).sum())
    spread = float(np.trace(covariance_a) + np.trace(covariance_b))
    return max(0.0, shift + spread - 2 * root_trace(covariance_a, covariance_b))


def root_trace(a_DD: Float64Array, b_DD: Float64Array) -> float:
    """tr((A B)^{1/2}) of two covariances."""
    import scipy.linalg  # here: reading a recipe imports this module

    lower_DD = _cholesky(a_DD)
    if lower_DD is not None and _cholesky(b_DD) is not None:
        # L^T B L by two triangular products; BLAS has them, NumPy does not.
        product = scipy.linalg.blas.dtrmm(1.0, lower_DD, b_DD, side=1, lower=1)
        product = scipy.linalg.blas.dtrmm(1.0, lower_DD, product, side=0, lower=1, trans_a=1)
        eigenvalue_D = torch.linalg.eigvalsh(torch.from_numpy(np.ascontiguousarray(product))).numpy()
        return float(np.sqrt(np.maximum(eigenvalue_D, 0)).sum())
    cross = factor(a_DD).T @ factor(b_DD)
    return float(torch.linalg.svdvals(torch.from_numpy(cross)).sum()) if cross.size else 0.0


def _cholesky(covariance_DD: Float64Array) -> Float64Array | None:
    """The lower factor [D, D] of a well-conditioned covariance, otherwise None."""
    import scipy.linalg  # here: reading a recipe imports this module

    lower_DD, failed = scipy.linalg.lapack.dpotrf(covariance_DD, lower=1, clean=1)
    if failed:
        return None
    norm = float(np.abs(covariance_DD).sum(axis=0).max())
    reciprocal, _ = scipy.linalg.lapack.dpocon(lower_DD, norm, uplo="L")
    if reciprocal <= WELL_CONDITIONED:
        return None
    factor_DD: Float64Array = lower_DD
    return factor_DD


class FrechetDistance(BaseMetric):
    """Lower is better; 0 for equal means and covariances. It falls with the number of samples (bias)."""

    name = "fd"
    of_reconstructions = True
    in_auto = True
    always_suffixed = True
    published: str | None = "fid"

    def least_samples(self, options: MetricOptions) -> int:
        """A covariance needs two."""
        return 2

    def covariance_samples(self, samples: int, classes: int, options: MetricOptions) -> int:
        """All of them."""
        return samples

    def compute(self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> MetricResult:
        dim, fewest = reference.embedding_ND.shape[1], min(len(reference), len(generated))
        details = {
            "dimensions": dim,
            "reference_samples": len(reference),
            "generated_samples": len(generated),
            "rank_deficient": fewest <= dim,
        }
        value = frechet_distance(reference.moments, generated.moments)

        def error() -> StandardError | None:
            return distance_error(reference.moments, generated, derive(options.settings.seed, "groups of fd"))

        return MetricResult(self.name, value, details, error=error, marks=of_samples(fewest, dim))


def distance_error(real: Moments, generated: FeatureSet, seed: int) -> StandardError | None:
    """The jackknife over random groups of samples; None for too few samples to leave any out."""
    if len(generated) < 2 * GROUPS:
        return None
    group_N = dealt(len(generated), GROUPS, np.random.default_rng(seed), generated.label_N)
    moments = [Moments.of(generated.embedding_ND[group_N == group]) for group in range(GROUPS)]

    def kept(groups: Sequence[int]) -> float:
        return frechet_distance(real, reduce(Moments.merge, (moments[group] for group in groups)))

    return error_of_groups(kept, real.mean_D)


def error_of_groups(kept: Callable[[Sequence[int]], float], mean_D: Float64Array) -> StandardError:
    """With the correction where a distance is cheap enough to be computed for every pair of groups."""
    if len(mean_D) <= MOST_FOR_PAIRS:
        return jackknife_of_pairs(kept)
    return jackknife([kept([g for g in range(GROUPS) if g != left_out]) for left_out in range(GROUPS)])


METRICS: tuple[Metric, ...] = (FrechetDistance(),)

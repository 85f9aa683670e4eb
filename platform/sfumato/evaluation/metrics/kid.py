"""Kernel Inception distance (Bińkowski et al. 2018): unbiased squared MMD under (x.y / D + 1)^3.

The figure is the mean over random subsets, as usually reported, with the standard deviation over the
subsets. The subsets are those that torch-fidelity draws from the same seed. The details also hold the
estimate on all samples, which has the smallest variance, unless there are too many.

Subsets share samples, so their deviation says little about other samples. The error is that of the estimate
on all samples (`kernel_errors.py`), of which the mean over subsets is a random approximation, with the
variance that the drawing of subsets adds.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from pydantic import Field

from sfumato.core.config import Config
from sfumato.core.seeds import derive
from sfumato.evaluation.intervals.kernel_errors import variances
from sfumato.evaluation.intervals.standard_errors import StandardError
from sfumato.evaluation.kernels import cubic, less, subset_sums, sum_between, unbiased_mmd2
from sfumato.evaluation.metrics.metric import BaseMetric, FeatureSet, Metric, MetricOptions, MetricResult
from sfumato.evaluation.statistics import Float32Array, Float64Array

MOST_ROWS = 5_000
"""Samples that the variance is estimated from: its own error is then below 3 %, at a tenth of KID's cost."""


class KidSettings(Config):
    """The subsets, and when to compare all samples."""

    kid_subsets: int = Field(100, ge=1, description="kid: random subsets to average the distance over.")
    kid_subset_size: int = Field(1000, ge=2, description="kid: images in a subset, of either set.")
    kid_all_samples: int = Field(
        20_000,
        ge=0,
        description="kid: if neither set has more images, also compute the estimate on all of them, "
        "whose cost grows with their square.",
    )


def kernel_distance(a_ND: Float32Array, b_MD: Float32Array) -> float:
    """Unbiased squared MMD of all samples, in blocks."""
    return unbiased_mmd2(torch.from_numpy(a_ND), torch.from_numpy(b_MD), cubic(a_ND.shape[1]))


def subset_distances(
    a_ND: Float32Array, b_MD: Float32Array, *, subsets: int, size: int, seed: int, all_samples: bool = True
) -> tuple[Float64Array, float | None]:
    """Unbiased squared MMDs [subsets] of random subsets of `size` rows each, and that of all samples.

    One pass over the pairs of all samples gives both; without `all_samples` there is one pass per
    subset. Raises ValueError for sets of fewer rows than `size`.
    """
    n, m = len(a_ND), len(b_MD)
    if min(n, m) < size:
        raise ValueError(f"subsets of {size} need {size} samples of either set, got {n}, {m}")
    a, b, kernel = torch.from_numpy(a_ND), torch.from_numpy(b_MD), cubic(a_ND.shape[1])
    # NumPy's old generator: the draws, and so the figures, are then torch-fidelity's.
    rng = np.random.RandomState(seed)
    draws = [
        tuple(torch.from_numpy(rng.choice(rows, size, replace=False)) for rows in (n, m))
        for _ in range(subsets)
    ]
    # A constant in the kernel cancels in the distance; without it float32 keeps more of its digits.
    some_a, some_b = a[:256], b[:256]
    offset = sum_between(some_a, some_b, kernel) / (len(some_a) * len(some_b))
    if not all_samples:
        shifted = less(kernel, offset)
        return np.array([unbiased_mmd2(a[rows_a], b[rows_b], shifted) for rows_a, rows_b in draws]), None
    pick_a, pick_b = torch.zeros(n, subsets), torch.zeros(m, subsets)
    for subset, (rows_a, rows_b) in enumerate(draws):
        pick_a[rows_a, subset] = pick_b[rows_b, subset] = 1
    (aa_S, aa), (bb_S, bb), (ab_S, ab) = (
        subset_sums(a, a, pick_a, pick_a, kernel, offset, same=True),
        subset_sums(b, b, pick_b, pick_b, kernel, offset, same=True),
        subset_sums(a, b, pick_a, pick_b, kernel, offset, same=False),
    )
    distance_S = (aa_S + bb_S) / (size * (size - 1)) - 2 * ab_S / size**2
    return distance_S.numpy(), aa / (n * (n - 1)) + bb / (m * (m - 1)) - 2 * ab / (n * m)


class KernelDistance(BaseMetric):
    """Lower is better; near 0, and on either side of it, for samples of the reference's own distribution."""

    Settings = KidSettings
    name = "kid"
    always_suffixed = True
    published: str | None = "kid"

    def least_samples(self, options: MetricOptions) -> int:
        """One subset."""
        return options.of(KidSettings).kid_subset_size

    def compute(self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> MetricResult:
        settings = options.of(KidSettings)
        distance_S, all_samples = subset_distances(
            generated.embedding_ND,
            reference.embedding_ND,
            subsets=settings.kid_subsets,
            size=settings.kid_subset_size,
            seed=options.settings.seed,
            all_samples=max(len(generated), len(reference)) <= settings.kid_all_samples,
        )
        details = {
            "subset_std": float(distance_S.std()),
            "all_samples": all_samples,
            "subsets": settings.kid_subsets,
            "subset_size": settings.kid_subset_size,
        }

        def error() -> StandardError | None:
            return _error(reference, generated, distance_S, settings, options.settings.seed)

        return MetricResult(self.name, float(distance_S.mean()), details, error=error)


def _error(
    reference: FeatureSet, generated: FeatureSet, distance_S: Float64Array, settings: KidSettings, seed: int
) -> StandardError | None:
    """None for one subset of many samples, or fewer than four samples: nothing tells the spread."""
    size, total = settings.kid_subset_size, len(generated)
    whole = size == total == len(reference)
    if total < 4 or (len(distance_S) == 1 and not whole):
        return None
    rng = np.random.default_rng(derive(seed, "variance of kid"))
    rows = np.sort(rng.permutation(total)[:MOST_ROWS])
    label_N = None if generated.label_N is None else generated.label_N[rows]
    found = variances(
        torch.from_numpy(generated.embedding_ND[rows]),
        torch.from_numpy(reference.embedding_ND),
        cubic(generated.embedding_ND.shape[1]),
        label_N,
    )
    of_subsets = 0.0 if whole else float(distance_S.var(ddof=1)) / len(distance_S)
    error = math.sqrt(found.of_estimate(total) + of_subsets)
    method = "variance of the estimate on all samples and of its subsets"
    return StandardError(error, method, found.freedom, deviation_P=found.deviations_of_estimate(total))


METRICS: tuple[Metric, ...] = (KernelDistance(),)

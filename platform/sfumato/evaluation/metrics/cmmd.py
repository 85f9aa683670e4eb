"""CLIP maximum mean discrepancy (Jayasumana et al. 2024): MMD^2 x 1000 of unit CLIP image embeddings.

Gaussian kernel of sigma 10, biased estimate over all samples, as in the authors' program. No Gaussian is
fitted, so it needs far fewer samples than a Fréchet distance and sees distortions that keep two moments.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from sfumato.evaluation.intervals.kernel_errors import variances
from sfumato.evaluation.intervals.standard_errors import StandardError
from sfumato.evaluation.kernels import biased_mmd2, gaussian
from sfumato.evaluation.metrics.metric import BaseMetric, FeatureSet, Metric, MetricOptions, MetricResult
from sfumato.evaluation.statistics import Float32Array, Float64Array

SIGMA = 10.0
SCALE = 1000.0


def cmmd(a_ND: Float32Array, b_MD: Float32Array) -> float:
    """The distance of two sets of embeddings of any length; they are scaled to length 1 here."""
    a, b = (torch.from_numpy(_unit(x)) for x in (a_ND, b_MD))
    return SCALE * biased_mmd2(a, b, gaussian(SIGMA))


def _unit(x_ND: Float32Array) -> Float64Array:
    # The distances of unit vectors over sigma^2 are small: float32 would leave four digits of them.
    wide = x_ND.astype(np.float64)
    unit: Float64Array = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return unit


class ClipDiscrepancy(BaseMetric):
    """Lower is better, 0 and up."""

    name = "cmmd"
    only_features: tuple[str, ...] = ("clip",)

    def least_samples(self, options: MetricOptions) -> int:
        """Two."""
        return 2

    def compute(self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> MetricResult:
        details = {"sigma": SIGMA, "scale": SCALE, "estimate": "biased, all samples"}

        def error() -> StandardError | None:
            if len(generated) < 4:
                return None
            made, real = (torch.from_numpy(_unit(x.embedding_ND)) for x in (generated, reference))
            found = variances(made, real, gaussian(SIGMA), generated.label_N)
            value = SCALE * math.sqrt(found.of_estimate(len(generated)))
            added_M = SCALE * found.deviations_of_estimate(len(generated))
            return StandardError(value, "variance of the estimate", found.freedom, low=0, deviation_P=added_M)

        value = cmmd(reference.embedding_ND, generated.embedding_ND)
        return MetricResult(self.name, value, details, error=error)


METRICS: tuple[Metric, ...] = (ClipDiscrepancy(),)

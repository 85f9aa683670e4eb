"""Bits per dimension that a model gives real images, for families with a likelihood or a bound on it.

The negative log-likelihood of an image in base 2, over its number of values. What is measured is a discrete
distribution, of 8-bit values unless the family says otherwise (`core.family.HasLikelihood`: a binarisation,
fewer levels). A family with a density dequantises the values itself (uniformly or as it learned to), and its
figure is then an upper bound. Autoregressive models give the exact figure, VAEs and diffusion models their
variational bound. Each family's README says which.
"""

from __future__ import annotations

from sfumato.errors import DataError
from sfumato.evaluation.metrics.metric import BaseMetric, FeatureSet, Metric, MetricOptions, MetricResult


class BitsPerDim(BaseMetric):
    """Mean over the real images; lower is better, 8 is what knowing nothing of 8-bit values costs."""

    name = "bits_per_dim"
    needs_likelihood = True
    in_auto = True

    def compute(self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> MetricResult:
        bits_N = reference.bits_N
        if bits_N is None:
            raise DataError(f"{self.name} needs a model with a likelihood: leave it out of evaluate.metrics")
        details = {
            "images": len(bits_N),
            "of": reference.bits_of,
            "std": float(bits_N.std()),
        }
        return MetricResult(self.name, float(bits_N.mean()), details, bits_N)


METRICS: tuple[Metric, ...] = (BitsPerDim(),)

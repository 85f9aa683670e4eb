"""Bits per dimension that a model gives real images, for families with a likelihood or a bound on it.

The negative log-likelihood of an image in base 2, over its number of values. It measures a discrete
distribution, of 8-bit values unless the family declares others (`core.family.HasLikelihood`: a binarisation,
fewer levels). A family with a density dequantises the values itself (uniformly or as it learned to), and its
figure is then an upper bound. Autoregressive models give the exact figure, VAEs and diffusion models their
variational bound. Each family's README states which.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sfumato.errors import DataError
from sfumato.evaluation.metric_inputs import Made, MetricInput, Prepared, Setting
from sfumato.evaluation.metrics.metric import (
    BaseMetric,
    FeatureSet,
    Metric,
    MetricOptions,
    MetricResult,
    TermsOf,
)
from sfumato.evaluation.reference import Reference
from sfumato.evaluation.source import GivesLikelihood, Kind, SampleSource
from sfumato.evaluation.statistics import Float64Array, Int64Array


@dataclass(frozen=True)
class PreparedLikelihood(Prepared):
    """Bits of the reference's first images, in separate blocks."""

    reference: Reference
    bits_of: str
    """The variable whose likelihood the model gives."""
    rows: int = 0
    stored_as = "bits"

    @property
    def identity(self) -> object:
        """The images."""
        return self.reference.digest if self.rows else None

    def block(
        self, source: SampleSource, index: int, *, seed: int, labels_B: Int64Array | None
    ) -> Float64Array:
        """Bits per dimension [n] of the real images of this block."""
        assert isinstance(source, GivesLikelihood)
        first = index * source.block
        real = self.reference.read(first, min(first + source.block, self.reference.size))
        return source.bits(index, real, seed=seed)

    def of_reference(self, features: FeatureSet, name: str, made: Made) -> FeatureSet:
        """With the bits."""
        return replace(features, bits_N=made.own, bits_of=self.bits_of)


class Likelihood(MetricInput):
    """Bits per dimension that the model gives the reference's images."""

    name = "likelihood"

    def given_by(self, source: SampleSource) -> bool:
        """By a model with a likelihood."""
        return isinstance(source, GivesLikelihood)

    def lacking(self, kind: Kind | None) -> str:
        """What else is needed."""
        return "a model with a likelihood, but this one has none"

    def prepare(self, setting: Setting, opened: object) -> PreparedLikelihood:
        """For `evaluate.likelihood_images` images."""
        source, reference = setting.source, setting.reference
        bits_of = source.likelihood_of if isinstance(source, GivesLikelihood) else ""
        rows = min(setting.settings.likelihood_images, reference.size)
        return PreparedLikelihood(reference, bits_of, rows)


class BitsPerDim(BaseMetric):
    """Mean over the real images; lower is better, 8 is the cost of knowing nothing about 8-bit values."""

    name = "bits_per_dim"
    inputs = (Likelihood(),)
    reads_features = False
    of_reconstructions = True
    in_auto = True
    terms_of: TermsOf = "references"

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

"""How far a GAN's discriminator knows its training images by heart, as its training has measured it.

    r_v = (E D(train) - E D(held out)) / (E D(train) - E D(generated))      Karras et al. 2020 (ADA), eq. 1

Only training has the discriminator and knows what was held out from it (`model.objective.held_out`), so this
reads the state that the model keeps; images are not looked at.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sfumato.errors import DataError
from sfumato.evaluation.metric_inputs import Made, MetricInput, Prepared, Setting
from sfumato.evaluation.metrics.metric import BaseMetric, FeatureSet, Metric, MetricOptions, MetricResult
from sfumato.evaluation.subjects.source import Kind, SampleSource, TellsOverfitting

NAME = "discriminator_overfitting"


@dataclass(frozen=True)
class PreparedOverfitting(Prepared):
    """The figure, on the driver alone."""

    value: float

    @property
    def identity(self) -> object:
        """What workers make does not depend on it."""
        return None

    def of_generated(self, features: FeatureSet, name: str, made: Made) -> FeatureSet:
        """With it."""
        return replace(features, inputs={**features.inputs, NAME: self.value})


class KnownOverfitting(MetricInput):
    """What the model's training has measured."""

    name = NAME

    def given_by(self, source: SampleSource) -> bool:
        """By a model whose training did."""
        return isinstance(source, TellsOverfitting) and source.overfitting is not None

    def lacking(self, kind: Kind | None) -> str:
        """What else is needed."""
        return "a gan trained with model.objective.held_out"

    def prepare(self, setting: Setting, opened: object) -> PreparedOverfitting:
        """As it is."""
        source = setting.source
        assert isinstance(source, TellsOverfitting), "given_by"
        value = source.overfitting
        assert value is not None, "given_by"
        return PreparedOverfitting(value)


class DiscriminatorOverfitting(BaseMetric):
    """About 0 to 1, lower is better; see the top of the file."""

    name = NAME
    reads_features = False
    inputs = (KnownOverfitting(),)

    def compute(self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> MetricResult:
        """Raises DataError for a model whose training did not measure it."""
        value = generated.inputs.get(NAME)
        if value is None:
            raise DataError(f"{NAME} needs {self.inputs[0].lacking(None)}: leave it out of evaluate.metrics")
        return MetricResult(
            NAME, float(value), no_interval="it is an average over training, not over samples"
        )


METRICS: tuple[Metric, ...] = (DiscriminatorOverfitting(),)

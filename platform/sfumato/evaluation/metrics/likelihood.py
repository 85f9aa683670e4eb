"""Bits per dimension that a model gives real images, for families with a likelihood or a bound on it.

The negative log-likelihood of an image in base 2, over its number of values. It measures a discrete
distribution, of 8-bit values unless the family declares others (`core.family.HasLikelihood`: a binarisation,
fewer levels). A family with a density dequantises the values itself (uniformly or as it learned to), and its
figure is then an upper bound. Autoregressive models give the exact figure, VAEs and diffusion models their
variational bound. Each family's README states which.

Training images flatter a model that has learned them by heart. The figure on them is therefore called
`train_bits_per_dim`, and nothing is chosen by it; `evaluate.likelihood_on` names images for `bits_per_dim`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sfumato.core.batch import DataSpec
from sfumato.errors import ConfigError, DataError
from sfumato.evaluation.metric_inputs import EvaluationSettings, Made, MetricInput, Prepared, Setting
from sfumato.evaluation.metrics.metric import (
    BaseMetric,
    FeatureSet,
    Metric,
    MetricOptions,
    MetricResult,
    TermsOf,
)
from sfumato.evaluation.references.reference import PackedReference, Reference
from sfumato.evaluation.report import BITS, BITS_ON_TRAINING
from sfumato.evaluation.statistics import Float64Array, Int64Array
from sfumato.evaluation.subjects.images import check_same_kind, open_images
from sfumato.evaluation.subjects.source import GivesLikelihood, Kind, SampleSource

TRAINING, HELD_OUT = "training images", "images that were not trained on"
ON = "likelihood_on"
"""The entry of `FeatureSet.inputs` with one of them."""


@dataclass(frozen=True)
class PreparedLikelihood(Prepared):
    """Bits of the first real images of a set, in separate blocks."""

    images: Reference
    bits_of: str
    """The variable whose likelihood the model gives."""
    rows: int = 0
    of: str = HELD_OUT
    stored_as = "bits"

    @property
    def identity(self) -> object:
        """The images."""
        return self.images.digest if self.rows else None

    def block(
        self, source: SampleSource, index: int, *, seed: int, labels_B: Int64Array | None
    ) -> Float64Array:
        """Bits per dimension [n] of the real images of this block."""
        assert isinstance(source, GivesLikelihood)
        first = index * source.block
        real = self.images.read(first, min(first + source.block, self.images.size))
        return source.bits(index, real, seed=seed, images=self.images)

    def of_reference(self, features: FeatureSet, name: str, made: Made) -> FeatureSet:
        """With the bits."""
        inputs = {**features.inputs, ON: self.of}
        return replace(features, bits_N=made.own, bits_of=self.bits_of, inputs=inputs)


class Likelihood(MetricInput):
    """Bits per dimension that the model gives real images."""

    name = "likelihood"

    def given_by(self, source: SampleSource) -> bool:
        """By a model with a likelihood."""
        return isinstance(source, GivesLikelihood)

    def lacking(self, kind: Kind | None) -> str:
        """What else is needed."""
        return "a model with a likelihood, but this one has none"

    def open(self, settings: EvaluationSettings, options: MetricOptions, reference: Reference) -> object:
        """The images. Raises DataError for none, or for another kind than the reference's."""
        return reference if settings.likelihood_on is None else images_at(settings.likelihood_on, reference)

    def prepare(self, setting: Setting, opened: object) -> PreparedLikelihood:
        """For `evaluate.likelihood_images` images.

        Raises ConfigError for training images that `evaluate.likelihood_on` names, DataError for images
        without the model's classes.
        """
        source = setting.source
        images: Reference = opened  # type: ignore[assignment]
        if not isinstance(source, GivesLikelihood):
            return PreparedLikelihood(images, "")
        if source.conditional:
            check_classes(images, source.spec)
        trained = source.trained_on in digests(images)
        if trained and setting.settings.likelihood_on is not None:
            raise ConfigError(trained_on(setting.settings.likelihood_on))
        rows = min(setting.settings.likelihood_images, images.size)
        return PreparedLikelihood(images, source.likelihood_of, rows, TRAINING if trained else HELD_OUT)


class BitsPerDim(BaseMetric):
    """Mean over the real images; lower is better, 8 is the cost of knowing nothing about 8-bit values."""

    name = BITS
    name_on_training = BITS_ON_TRAINING
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
            "on": reference.inputs.get(ON, HELD_OUT),
            "std": float(bits_N.std()),
        }
        return MetricResult(self.name, float(bits_N.mean()), details, bits_N)


def images_at(place: str, reference: Reference) -> Reference:
    """The images of `evaluate.likelihood_on`. Raises DataError for none, or for another kind."""
    try:
        images = open_images(place)
    except DataError as error:
        raise DataError(
            f"evaluate.likelihood_on: {error}; put images there that were not trained on (sfumato pack), or "
            f"leave it out for {BitsPerDim.name_on_training}"
        ) from error
    check_same_kind(images.spec, reference.spec, what="the images of evaluate.likelihood_on are")
    return images


def check_classes(images: Reference, data: DataSpec) -> None:
    """Raises DataError for images that do not have the classes of a class-conditional model."""
    if images.spec.num_classes != data.num_classes:
        raise DataError(
            f"the model has {data.num_classes} classes and the images of evaluate.likelihood_on "
            f"{images.spec.num_classes}: name images with the same classes"
        )


def digests(images: Reference) -> tuple[str, str]:
    """By which a model may know that these images, or the set that they are a part of, trained it."""
    return images.digest, images.whole_digest if isinstance(images, PackedReference) else images.digest


def trained_on(place: str) -> str:
    """The error for training images."""
    return (
        f"evaluate.likelihood_on={place} is what the model is trained on: name other images, or leave it out "
        f"for {BitsPerDim.name_on_training}"
    )


def chooses_by_training(field: str, figure: str, likelihood_on: str | None) -> list[str]:
    """Why a model may not be chosen by this figure of its own evaluation, as one line or none."""
    if likelihood_on is not None or figure not in (BitsPerDim.name, BitsPerDim.name_on_training):
        return []
    reason = "which favours a model that has learned them by heart"
    return [f"{field}: {figure} is of {TRAINING}, {reason}: set evaluate.likelihood_on to {HELD_OUT}"]


METRICS: tuple[Metric, ...] = (BitsPerDim(),)

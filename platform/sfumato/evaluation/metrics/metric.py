"""What a metric is: a pure function of a reference and a generated feature set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

from sfumato.core.batch import DataSpec
from sfumato.core.config import Config
from sfumato.evaluation.feature_set import FeatureSet, ImageBlocks
from sfumato.evaluation.intervals.standard_errors import StandardError
from sfumato.evaluation.metric_inputs import MetricInput
from sfumato.evaluation.metric_options import MetricOptions, MetricSettings
from sfumato.evaluation.statistics import Float64Array, UInt8Array

TermsOf = Literal["samples", "references"]
Topic = Literal["quality", "alignment", "memorisation", "bias", "detection"]
"""The part of a model card that a figure belongs to."""

__all__ = [
    "BaseMetric",
    "FeatureSet",
    "ImageBlocks",
    "Metric",
    "MetricOptions",
    "MetricResult",
    "MetricSettings",
    "PairMetric",
    "TermsOf",
    "Topic",
    "reported_name",
]


@dataclass(frozen=True, slots=True)
class MetricResult:
    """One number and what explains it; `details` holds plain JSON values only.

    Where `value` is a mean of independent terms, `terms_M` are those terms (an indicator or a figure for
    every image or pair of images), and the metric's `terms_of` says what they belong to: the interval is then
    a bootstrap over them. Where the method comes with a standard error of its own, `error` computes it; only
    evaluations with intervals call it. Other numbers get theirs from a jackknife, ten computations more; a
    metric that is too costly for that says in `no_interval` why there is none.
    """

    name: str
    value: float
    details: Mapping[str, object] = field(default_factory=dict)
    terms_M: Float64Array | None = None
    error: Callable[[], StandardError | None] | None = None
    no_interval: str = ""
    marks: tuple[str, ...] = ()
    """Why the value says little, if it does (`weakness.py`)."""


class Metric(Protocol):
    """One number a feature set. A file in this folder lists its own in `METRICS`, which is how it is found.

    Derive from `BaseMetric` and say what differs from it.
    """

    name: str
    name_on_training: str
    """The figure's name if it is computed on images that the model was trained on; empty: the same."""
    higher_is_better: bool
    in_auto: bool
    """Whether `evaluate.metrics=auto` computes it."""
    needs_logits: bool
    """It reads logits of the data's own classes."""
    needs_any_logits: bool
    """It reads logits, of any classes."""
    needs_labels: bool
    """It compares by class: the samples must have been asked for by class."""
    needs_images: bool
    """It reads `FeatureSet.images` of both sets."""

    @property
    def inputs(self) -> tuple[MetricInput, ...]:
        """What it reads in addition to features: captions, a likelihood, whatever its own file provides."""
        ...

    reads_features: bool
    """Whether its figure depends on the features; one that does not is computed once, under its plain name.
    """
    of_reconstructions: bool
    """Whether `evaluate.metrics=auto` computes it on reconstructions, too."""

    @property
    def Settings(self) -> type[Config] | None:
        """The class of its settings, whose fields are part of `evaluate.metric_options`; None for none."""
        ...

    only_features: tuple[str, ...]
    """Names of the only features that it is defined on; empty: all."""
    always_suffixed: bool
    """Whether its name carries the features' even when an evaluation uses one kind alone."""
    refuses_noise: bool
    """Whether features are unfit for it if uniform noise gets more than next to nothing (`weakness.py`)."""
    terms_of: TermsOf
    """What the terms of its mean belong to; comparisons pair them accordingly. `samples`: made images, or
    pairs of them, each judged by itself. `references`: real images, each judged by the model itself."""
    published: str | None
    """Its name on the features of its paper, InceptionV3 of 2015-12-05 (`fid`); None: no other."""
    topic: Topic
    """What it says: where a model card shows it. Comparisons draw quality against `alignment`, which is how
    well images follow their texts."""

    def least_samples(self, options: MetricOptions) -> int:
        """How many images it needs of either set."""
        ...

    def covariance_samples(self, samples: int, classes: int, options: MetricOptions) -> int | None:
        """How many of so many samples are in the smallest set that it takes a covariance of, if it does."""
        ...

    def problems(self, data: DataSpec) -> list[str]:
        """Why this metric cannot be computed for images of this kind; one line each."""
        ...

    def compute(
        self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions
    ) -> MetricResult: ...


class BaseMetric:
    """A metric on embeddings alone, computed when asked for by name; subclasses set what differs."""

    name_on_training = ""
    higher_is_better = False
    in_auto = False
    needs_logits = False
    needs_any_logits = False
    needs_labels = False
    needs_images = False
    inputs: tuple[MetricInput, ...] = ()
    reads_features = True
    of_reconstructions = False
    Settings: ClassVar[type[Config] | None] = None
    only_features: tuple[str, ...] = ()
    always_suffixed = False
    refuses_noise = False
    terms_of: TermsOf = "samples"
    published: str | None = None
    topic: Topic = "quality"

    def least_samples(self, options: MetricOptions) -> int:
        """One image."""
        return 1

    def covariance_samples(self, samples: int, classes: int, options: MetricOptions) -> int | None:
        """It takes none."""
        return None

    def problems(self, data: DataSpec) -> list[str]:
        """None."""
        return []


class PairMetric(Protocol):
    """One number an image from the image and its reconstruction; the metric is their mean.

    For models that reconstruct (autoencoders). A file in this folder lists its own in `PAIR_METRICS`.
    """

    name: str
    higher_is_better: bool

    def problems(self, data: DataSpec) -> list[str]:
        """Why it cannot be computed for images of this kind; one line each."""
        ...

    def compare(self, real_NHWC: UInt8Array, made_NHWC: UInt8Array) -> Float64Array:
        """A value for each pair [N]; row i depends on pair i alone."""
        ...


def reported_name(metric: Metric, features: str, *, several: bool) -> str:
    """The figure's name in a report: `fid` on Inception features, `fd_<features>` on others, `precision`.

    `several` says that the evaluation computes this metric on more than one kind of features.
    """
    if metric.published is not None and features == "inception":
        return metric.published
    return f"{metric.name}_{features}" if metric.always_suffixed or several else metric.name

"""What metrics read beside features, and how it is made: an input is a class, in this file or in its
metric's.

A metric names its inputs (`BaseMetric.inputs = (MyInput(),)`). In an evaluation each of them is

1. asked whether what is evaluated can give it (`given_by`), opened before anything expensive (`open`), and
   prepared once features of the reference are there (`prepare`);
2. what that returns, a `Prepared`, travels to the workers and makes arrays there: beside the features of a
block
   of images (`beside`), or in blocks of its own (`rows`, `block`), which are stored and resumed as all
   blocks are;
3. and puts them into the feature sets that the metric sees (`of_reference`, `of_generated`), most simply into
   `FeatureSet.inputs`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import numpy as np

from sfumato.errors import ConfigError, DataError
from sfumato.evaluation.feature_set import FeatureSet
from sfumato.evaluation.features.extractor import Extractor, ReadsCaptions
from sfumato.evaluation.metric_options import MetricOptions
from sfumato.evaluation.references.feature_cache import FeatureCache
from sfumato.evaluation.references.features import ReferenceFeatures, caption_features
from sfumato.evaluation.references.reference import Captioned, Reference
from sfumato.evaluation.statistics import Float32Array, Int64Array
from sfumato.evaluation.store import Array
from sfumato.evaluation.subjects.images import check_same_kind, open_images
from sfumato.evaluation.subjects.source import Drawn, GivesCaptions, Kind, SampleSource


class EvaluationSettings(Protocol):
    """What inputs may read of the recipe's `evaluate` section."""

    @property
    def samples(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def held_out(self) -> str | None: ...
    @property
    def likelihood_images(self) -> int: ...
    @property
    def likelihood_on(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Setting:
    """The evaluation that an input is prepared for."""

    settings: EvaluationSettings
    options: MetricOptions
    source: SampleSource
    reference: Reference
    extractors: Sequence[Extractor]
    real: ReferenceFeatures
    """Features of sets of real images."""

    @property
    def cache(self) -> FeatureCache:
        """Where they are kept."""
        return self.real.cache


@dataclass(frozen=True, slots=True)
class Made:
    """What workers made for an input: the rows of its own blocks, and arrays beside features by name."""

    own: Array | None
    beside: Callable[[str], Array | None]


class Prepared:
    """An input that is ready to be made. It is pickled to the workers. What differs is overridden.

    `identity` is all that its arrays depend on beside the model, the seed and the features, as JSON values.
    `rows` counts those of blocks of its own; `labelled` says that these are asked for by class, as samples
    are.
    """

    stored_as: ClassVar[str] = ""
    """How files of its own blocks are called, and the array in them."""
    labelled: ClassVar[bool] = False

    @property
    def identity(self) -> object:
        """True: nothing but that it is made."""
        return True

    @property
    def rows(self) -> int:
        """None."""
        return 0

    def beside(
        self, source: SampleSource, index: int, drawn: Drawn, extractors: Sequence[Extractor]
    ) -> Mapping[str, Array]:
        """Arrays [n, ...] of the images of a block, by name."""
        return {}

    def block(self, source: SampleSource, index: int, *, seed: int, labels_B: Int64Array | None) -> Array:
        """Rows `index * source.block` onwards of its own: `source.block` of them, fewer at the end."""
        assert not self.rows, f"{type(self).__name__} has rows and does not say how they are made"
        return np.empty(0)

    def of_reference(self, features: FeatureSet, name: str, made: Made) -> FeatureSet:
        """The reference's features of this name, with this input."""
        return features

    def of_generated(self, features: FeatureSet, name: str, made: Made) -> FeatureSet:
        """The features of what was generated, with this input."""
        return features


class MetricInput(ABC):
    """Something that metrics read beside features."""

    name: ClassVar[str]
    of_source: ClassVar[bool] = True
    """Whether what is evaluated gives it; otherwise the settings or the reference do."""
    reads_held_out: ClassVar[bool] = False
    """Whether it reads the images of `evaluate.held_out`, if there are any."""

    def given_by(self, source: SampleSource) -> bool:
        """Whether what is evaluated can give it."""
        return True

    def lacking(self, kind: Kind | None) -> str:
        """What would be needed where it is not given, for `metric NAME needs ...`."""
        return f"the input {self.name}, which this evaluation cannot give"

    def open(self, settings: EvaluationSettings, options: MetricOptions, reference: Reference) -> object:
        """Whatever has to be found before anything is extracted; `prepare` gets it. Raises for what is
        missing.
        """
        return None

    @abstractmethod
    def prepare(self, setting: Setting, opened: object) -> Prepared:
        """The input for this evaluation."""


class Captions(MetricInput):
    """Features of captions, in the space of the images': `FeatureSet.text_ND`."""

    name = "captions"

    def given_by(self, source: SampleSource) -> bool:
        """By images that have captions."""
        return isinstance(source, GivesCaptions) and source.captioned

    def lacking(self, kind: Kind | None) -> str:
        """Captions."""
        return "images with captions, and these have none"

    def prepare(self, setting: Setting, opened: object) -> PreparedCaptions:
        """With those of the reference's first images, as many as there are samples.

        Raises CapabilityError for features that cannot read captions.
        """
        text: dict[str, Float32Array] = {}
        reference = setting.reference
        for extractor in setting.extractors:
            if not isinstance(extractor, ReadsCaptions):
                continue
            extractor.extract_text(["a"])  # without a tokenizer it fails here, not in a worker
            if isinstance(reference, Captioned) and reference.captioned:
                rows = min(setting.settings.samples, reference.size)
                text[extractor.name] = caption_features(reference, extractor, setting.cache, rows)
        return PreparedCaptions(text)


@dataclass(frozen=True)
class PreparedCaptions(Prepared):
    """`text` are the features of the reference's captions, by the features' name."""

    text: Mapping[str, Float32Array]

    def beside(
        self, source: SampleSource, index: int, drawn: Drawn, extractors: Sequence[Extractor]
    ) -> Mapping[str, Array]:
        """Those of the block's captions."""
        assert isinstance(source, GivesCaptions)
        texts = source.captions_of(index)[: len(drawn.images)]
        return {
            f"{extractor.name}.text": extractor.extract_text(texts)
            for extractor in extractors
            if isinstance(extractor, ReadsCaptions)
        }

    def of_reference(self, features: FeatureSet, name: str, made: Made) -> FeatureSet:
        """With the reference's."""
        return replace(features, text_ND=self.text.get(name))

    def of_generated(self, features: FeatureSet, name: str, made: Made) -> FeatureSet:
        """With those of the samples."""
        return replace(features, text_ND=made.beside(f"{name}.text"))


class HeldOut(MetricInput):
    """Real images that the model was not trained on, where `evaluate.held_out` names some.

    `least` says how many the metric needs.
    """

    name = "held_out"
    of_source = False
    reads_held_out = True

    def __init__(self, least: Callable[[MetricOptions], int]) -> None:
        self._least = least

    def open(self, settings: EvaluationSettings, options: MetricOptions, reference: Reference) -> object:
        """The images.

        Raises DataError for another kind of images or too few, ConfigError for the reference itself.
        """
        if settings.held_out is None:
            return None
        images = open_images(settings.held_out)
        check_same_kind(images.spec, reference.spec, what="the held-out images are")
        if images.digest == reference.digest:
            raise ConfigError(
                f"evaluate.held_out={settings.held_out} is the reference itself: name images that were not "
                "trained on, such as the val part of the data"
            )
        least = self._least(options)
        if images.size < least:
            raise DataError(f"memorisation needs {least} held-out images or more, got {images.size}")
        return images

    def prepare(self, setting: Setting, opened: object) -> PreparedHeldOut:
        """Their features."""
        if opened is None:
            return PreparedHeldOut({})
        images: Reference = opened  # type: ignore[assignment]
        return PreparedHeldOut(setting.real.of(images, setting.extractors, "held-out images"))


@dataclass(frozen=True)
class PreparedHeldOut(Prepared):
    """By the features' name."""

    features: Mapping[str, FeatureSet]

    def __reduce__(self) -> tuple[type[PreparedHeldOut], tuple[dict[str, FeatureSet]]]:
        return (type(self), ({},))  # workers have no use for them

    @property
    def identity(self) -> object:
        """What workers make does not depend on it."""
        return None

    def of_reference(self, features: FeatureSet, name: str, made: Made) -> FeatureSet:
        """With them."""
        return replace(features, held_out=self.features.get(name))

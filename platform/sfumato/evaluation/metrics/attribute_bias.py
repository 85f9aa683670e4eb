"""Attribute bias: which attributes a model favours or neglects, on pictures of the source `shapes`.

The exact checker reads the shape, colour and size of every object, the background, and how many objects
there are. The figure is the mean over these attributes of the total variation distance between the samples'
shares and those of the real pictures (`shares.py`). `details` have every value; `groups` have the same for
the samples whose captions are of one category. Objects of one picture are not independent: intervals are a
little too narrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sfumato.core.batch import DataSpec
from sfumato.data.shapes.checker import VERSION, Checker
from sfumato.data.shapes.claims import claim_of
from sfumato.data.shapes.vocabulary import (
    BACKGROUNDS,
    CATEGORIES,
    COLOURS,
    LARGEST_SIDE,
    SHAPES,
    SIZES,
    SMALLEST_SIDE,
)
from sfumato.errors import DataError
from sfumato.evaluation.features.extractor import Extractor
from sfumato.evaluation.intervals.shares import FEWEST, compared
from sfumato.evaluation.metric_inputs import Made, MetricInput, Prepared, Setting
from sfumato.evaluation.metrics.metric import (
    BaseMetric,
    FeatureSet,
    Metric,
    MetricOptions,
    MetricResult,
    Topic,
)
from sfumato.evaluation.references.reference import Captioned, Reference
from sfumato.evaluation.statistics import Int64Array, UInt8Array
from sfumato.evaluation.store import Array
from sfumato.evaluation.subjects.source import Drawn, GivesCaptions, SampleSource

NAME = "attributes"
ATTRIBUTES: Mapping[str, Sequence[str]] = {
    "shape": (*SHAPES, "other"),
    "colour": tuple(COLOURS),
    "size": tuple(SIZES),
    "background": tuple(BACKGROUNDS),
    "objects": ("0", "1", "2", "3", "4", "more"),
}


def read_attributes(images_NHWC: UInt8Array, captions: Sequence[str] | None) -> Int64Array:
    """Counts [N, 1 + values]: the category of each caption (-1 without), then how often each value of each
    attribute is in the picture, in the order of `ATTRIBUTES`."""
    rows = []
    for row, contents in enumerate(Checker(images_NHWC.shape[1]).read(images_NHWC)):
        claim = None if captions is None else claim_of(captions[row])
        things = () if contents is None else contents.things
        held = {
            "shape": [thing.shape or "other" for thing in things],
            "colour": [thing.colour for thing in things],
            "size": [thing.size for thing in things],
            "background": [] if contents is None else [contents.background],
            "objects": [str(len(things)) if len(things) <= 4 else "more"],
        }
        counts = [held[name].count(value) for name, values in ATTRIBUTES.items() for value in values]
        rows.append([-1 if claim is None else CATEGORIES.index(claim.category), *counts])
    return np.array(rows, np.int64).reshape(len(rows), -1)


class Attributes(MetricInput):
    """What the checker reads in every picture."""

    name = NAME

    def prepare(self, setting: Setting, opened: object) -> PreparedAttributes:
        """The real pictures are read here, the samples where they are made."""
        return PreparedAttributes(_of_reference(setting.reference))


def _of_reference(reference: Reference) -> Int64Array:
    parts = []
    for part in reference.parts(512):
        images, _ = reference.read(part.start, part.stop)
        captioned = isinstance(reference, Captioned) and reference.captioned
        texts = reference.captions(part.start, part.stop) if captioned else None  # type: ignore[attr-defined]
        parts.append(read_attributes(images, texts))
    return np.concatenate(parts)


@dataclass(frozen=True)
class PreparedAttributes(Prepared):
    """`real` is the reading of the reference, on the driver alone."""

    real: Int64Array | None

    def __reduce__(self) -> tuple[type[PreparedAttributes], tuple[None]]:
        return (type(self), (None,))

    @property
    def identity(self) -> object:
        """The checker's version."""
        return VERSION

    def beside(
        self, source: SampleSource, index: int, drawn: Drawn, extractors: Sequence[Extractor]
    ) -> Mapping[str, Array]:
        """Those of a block."""
        captioned = isinstance(source, GivesCaptions) and source.captioned
        texts = source.captions_of(index)[: len(drawn.images)] if captioned else None  # type: ignore[attr-defined]
        return {NAME: read_attributes(drawn.images, texts)}

    def of_reference(self, features: FeatureSet, name: str, made: Made) -> FeatureSet:
        """With the real ones."""
        return replace(features, inputs={**features.inputs, NAME: self.real})

    def of_generated(self, features: FeatureSet, name: str, made: Made) -> FeatureSet:
        """With those of the samples."""
        return replace(features, inputs={**features.inputs, NAME: made.beside(NAME)})


class AttributeBias(BaseMetric):
    """Mean total variation between the samples' attributes and those of the real pictures, 0 to 1; lower is
    better. For pictures of the source `shapes`."""

    name = "attribute_bias"
    topic: Topic = "bias"
    reads_features = False
    inputs = (Attributes(),)

    def problems(self, data: DataSpec) -> list[str]:
        if data.channels == 3 and data.height == data.width and SMALLEST_SIDE <= data.width <= LARGEST_SIDE:
            return []
        wanted = (
            f"{SMALLEST_SIDE}x{SMALLEST_SIDE} to {LARGEST_SIDE}x{LARGEST_SIDE} pictures of the source shapes"
        )
        return [f"{self.name} reads {wanted}, in colour: leave it out of evaluate.metrics"]

    def compute(self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> MetricResult:
        """Raises DataError where there are no pictures."""
        real, made = reference.inputs.get(NAME), generated.inputs.get(NAME)
        if real is None or made is None:
            raise DataError(f"{self.name} needs the images themselves: leave it out of evaluate.metrics")
        found = _by_attribute(made, real, options.settings.seed)
        details: dict[str, object] = {
            "attributes": found,
            "groups": _by_category(made, real, options.settings.seed),
        }
        value = float(np.mean([each["distance"] for each in found.values()])) if found else 1.0
        why = "its attributes are dependent: read their own intervals in the details"
        return MetricResult(self.name, value, details, no_interval=why)


def _by_category(made: Int64Array, real: Int64Array, seed: int) -> dict[str, Any]:
    groups: dict[str, Any] = {}
    for number, name in enumerate(CATEGORIES):
        mine, theirs = made[made[:, 0] == number], real[real[:, 0] == number]
        if len(mine) >= FEWEST and len(theirs) >= FEWEST:
            groups[name] = _by_attribute(mine, theirs, seed)
    return groups


def _by_attribute(made: Int64Array, real: Int64Array, seed: int) -> dict[str, Any]:
    """Every attribute of which both sets show something."""
    found, first = {}, 1
    for name, values in ATTRIBUTES.items():
        columns = slice(first, first + len(values))
        first += len(values)
        mine_K, theirs_K = made[:, columns].sum(axis=0), real[:, columns].sum(axis=0)
        if mine_K.sum() and theirs_K.sum():
            found[name] = compared(mine_K, theirs_K / theirs_K.sum(), values, seed)
    return found


METRICS: tuple[Metric, ...] = (AttributeBias(),)

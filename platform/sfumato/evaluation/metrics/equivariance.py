"""Equivariance of a generator (Karras et al. 2021, app. E): does an image move and turn as a whole?

    EQ = 10 log10(I_max^2 / E (g(t(z)) - t(g(z)))^2)   decibels, I_max = 2, the range of values

- `eq_t`: t moves the image by whole pixels, of up to an eighth of its side in each direction (app. E.1).
- `eq_r`: t turns it by any angle (app. E.3; `evaluation/turned.py`).

The mean is over all values that both images define. For models that can place what they show: GANs with
`network.kind=stylegan3`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from sfumato.core.batch import DataSpec
from sfumato.core.config import Config
from sfumato.core.rng import SampleRng
from sfumato.core.seeds import derive
from sfumato.errors import DataError
from sfumato.evaluation.intervals.standard_errors import StandardError
from sfumato.evaluation.metric_inputs import Made, MetricInput, Prepared, Setting
from sfumato.evaluation.metrics.metric import BaseMetric, FeatureSet, Metric, MetricOptions, MetricResult
from sfumato.evaluation.statistics import Float64Array, Int64Array
from sfumato.evaluation.subjects.source import Kind, PlacesImages, SampleSource
from sfumato.evaluation.turned import REACH, as_if_rotated, rotated, rotation

LARGEST = 1 / 8
"""Of a movement, in image sides."""
RANGE = 2.0
LEAST = 1e-12
"""Mean square below which images count as equal."""


class EquivarianceSettings(Config):
    """On how many images equivariance is measured."""

    equivariance_images: int = Field(
        500, ge=10, description="eq_t, eq_r: images, each moved or turned once; the paper has 50,000."
    )


@dataclass(frozen=True)
class PreparedTranslations(Prepared):
    """Squared errors of images that were moved, and the number of values, [n, 2], in blocks of their own."""

    images: int
    stored_as = "translation"
    labelled = True

    @property
    def rows(self) -> int:
        """One an image."""
        return self.images

    def block(
        self, source: SampleSource, index: int, *, seed: int, labels_B: Int64Array | None
    ) -> Float64Array:
        """Those of a block's images."""
        assert isinstance(source, PlacesImages)
        rng = SampleRng(derive(seed, self.stored_as), range(index * source.block, (index + 1) * source.block))
        sides = torch.tensor([source.spec.width, source.spec.height], dtype=torch.float64)
        shift_B2 = ((rng.uniform(2).double() * 2 - 1) * LARGEST * sides).round()
        placed_B33 = torch.eye(3).repeat(source.block, 1, 1)
        placed_B33[:, :2, 2] = (-shift_B2 / sides).float()
        still, moved = source.placed(index, seed=seed, labels_B=labels_B, placed_B33=placed_B33)
        pairs = zip(still, moved, shift_B2.long().tolist(), strict=True)
        return np.array([_compared(*_overlap(a, b, x, y)) for a, b, (x, y) in pairs])

    def of_generated(self, features: FeatureSet, name: str, made: Made) -> FeatureSet:
        """With them."""
        return replace(features, inputs={**features.inputs, self.stored_as: made.own})


@dataclass(frozen=True)
class PreparedRotations(PreparedTranslations):
    """The same of images that were turned."""

    stored_as = "rotation"

    def block(
        self, source: SampleSource, index: int, *, seed: int, labels_B: Int64Array | None
    ) -> Float64Array:
        """Those of a block's images."""
        assert isinstance(source, PlacesImages)
        rng = SampleRng(derive(seed, self.stored_as), range(index * source.block, (index + 1) * source.block))
        angles = (math.pi * (rng.uniform().double() * 2 - 1)).tolist()
        placed_B33 = torch.eye(3).repeat(source.block, 1, 1)
        placed_B33[:, :2, :2] = torch.stack([rotation(-angle) for angle in angles]).float()
        still, turned = source.placed(index, seed=seed, labels_B=labels_B, placed_B33=placed_B33)
        return np.array(
            [_turned_error(a, b, angle) for a, b, angle in zip(still, turned, angles, strict=True)]
        )


def _overlap(still_CHW: Tensor, moved_CHW: Tensor, x: int, y: int) -> tuple[Tensor, Tensor]:
    """The parts of both that show the same if the second is the first, x pixels to the right and y down."""
    height, width = still_CHW.shape[1:]
    return (
        still_CHW[:, max(-y, 0) : height - max(y, 0), max(-x, 0) : width - max(x, 0)],
        moved_CHW[:, max(y, 0) : height - max(-y, 0), max(x, 0) : width - max(-x, 0)],
    )


def _turned_error(still_CHW: Tensor, turned_CHW: Tensor, angle: float) -> tuple[float, float]:
    expected, known_HH = rotated(still_CHW.cpu(), angle)
    found, there_HH = as_if_rotated(turned_CHW.cpu(), angle)
    both_HH = known_HH & there_HH
    return _compared(expected[:, both_HH], found[:, both_HH])


def _compared(a: Tensor, b: Tensor) -> tuple[float, float]:
    return float((a.double() - b.double()).square().sum()), float(a.numel())


class Translations(MetricInput):
    """Errors of images that the model moves."""

    name = "translation"
    prepared: ClassVar[type[PreparedTranslations]] = PreparedTranslations

    def given_by(self, source: SampleSource) -> bool:
        """By a model that can."""
        return isinstance(source, PlacesImages) and source.places

    def lacking(self, kind: Kind | None) -> str:
        """What else is needed."""
        return "a model that can place what it shows (gan with network.kind=stylegan3)"

    def prepare(self, setting: Setting, opened: object) -> PreparedTranslations:
        """As many as the options say."""
        return self.prepared(setting.options.of(EquivarianceSettings).equivariance_images)


class Rotations(Translations):
    """Errors of images that the model turns."""

    name = "rotation"
    prepared = PreparedRotations


class TranslationEquivariance(BaseMetric):
    """In decibels, higher is better; see the top of the file."""

    name = "eq_t"
    higher_is_better = True
    reads_features = False
    Settings = EquivarianceSettings
    inputs: tuple[MetricInput, ...] = (Translations(),)

    def compute(self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> MetricResult:
        """Raises DataError for a model that cannot place what it shows."""
        error_N2: Float64Array | None = generated.inputs.get(self.inputs[0].name)
        if error_N2 is None:
            raise DataError(f"{self.name} needs {self.inputs[0].lacking(None)}: leave it out")
        (total, values), images = error_N2.sum(0), len(error_N2)
        mean = max(float(total / values), LEAST)
        spread = math.sqrt(images / (images - 1) * np.square(error_N2[:, 0] - mean * error_N2[:, 1]).sum())
        error = StandardError(
            10 / math.log(10) * spread / values / mean, "standard error of a ratio of means", images - 1
        )
        details = {"images": images, "mean_square": mean}
        return MetricResult(self.name, 10 * math.log10(RANGE**2 / mean), details, error=lambda: error)


class RotationEquivariance(TranslationEquivariance):
    """The same for turns."""

    name = "eq_r"
    inputs = (Rotations(),)

    def problems(self, data: DataSpec) -> list[str]:
        """Images that the filter does not fit into."""
        least = 2 * REACH + 4
        if data.height == data.width and data.height >= least:
            return []
        got = f"this data has {data.height}x{data.width}"
        return [f"{self.name} needs square images with a side of {least} or more, {got}: leave it out"]


METRICS: tuple[Metric, ...] = (TranslationEquivariance(), RotationEquivariance())

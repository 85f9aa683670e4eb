"""Small pixels of every image of an evaluation, for metrics that look for copies in the pictures themselves.

Features forget what makes a picture this picture; copies are sought in pixels (Carlini et al. 2023). Images
are averaged down to at most 32 pixels a side, which is also what makes a copy with a little noise a copy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from sfumato.errors import ConfigError, DataError
from sfumato.evaluation.feature_set import FeatureSet
from sfumato.evaluation.features.extractor import Extractor
from sfumato.evaluation.metric_inputs import EvaluationSettings, Made, MetricInput, Prepared, Setting
from sfumato.evaluation.metric_options import MetricOptions
from sfumato.evaluation.references.reference import Reference
from sfumato.evaluation.statistics import Int64Array, UInt8Array
from sfumato.evaluation.store import Array
from sfumato.evaluation.subjects.images import check_same_kind, open_images
from sfumato.evaluation.subjects.source import Drawn, GivesCaptions, SampleSource

NAME = "small_pictures"
SIDE = 32


@dataclass(frozen=True, slots=True)
class SmallPictures:
    """Small pixels uint8 [N, D] of a set, and of real images that were not trained on, if there are any.

    `condition_N` tells samples of different captions apart; None where nothing but a class was asked for.
    """

    pixels_ND: UInt8Array
    condition_N: Int64Array | None = None
    held_out_MD: UInt8Array | None = None

    @classmethod
    def of(cls, features: FeatureSet) -> SmallPictures:
        """Those of a feature set. Raises DataError where they were not made."""
        found = features.inputs.get(NAME)
        if not isinstance(found, SmallPictures):
            raise DataError("this metric needs the images themselves, which an .npz of statistics has not")
        return found


def small(images_NHWC: UInt8Array) -> UInt8Array:
    """Images [N, H, W, C] averaged down to at most 32 pixels a side, flat [N, D]."""
    height, width = images_NHWC.shape[1:3]
    scale = min(1.0, SIDE / max(height, width))
    if scale == 1.0:
        return images_NHWC.reshape(len(images_NHWC), -1)
    x_NCHW = torch.from_numpy(images_NHWC).permute(0, 3, 1, 2).float()
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    x_NCHW = torch.nn.functional.interpolate(x_NCHW, size=size, mode="area")
    return x_NCHW.round().to(torch.uint8).permute(0, 2, 3, 1).flatten(1).contiguous().numpy()


class Pictures(MetricInput):
    """Small pixels of samples, reference and `evaluate.held_out`."""

    name = NAME
    reads_held_out = True

    def open(self, settings: EvaluationSettings, options: MetricOptions, reference: Reference) -> object:
        """The held-out images, None without any. Raises DataError or ConfigError as `HeldOut`."""
        if settings.held_out is None:
            return None
        images = open_images(settings.held_out)
        check_same_kind(images.spec, reference.spec, what="the held-out images are")
        if images.digest == reference.digest:
            raise ConfigError(
                f"evaluate.held_out={settings.held_out} is the reference itself: name images that were not "
                "trained on, such as the val part of the data"
            )
        return images

    def prepare(self, setting: Setting, opened: object) -> PreparedPictures:
        """Real images are read here, those of samples where they are made."""
        held_out: Reference | None = opened  # type: ignore[assignment]
        real = _all(image for image, _ in setting.reference.blocks())
        others = None if held_out is None else _all(image for image, _ in held_out.blocks())
        return PreparedPictures(SmallPictures(real, held_out_MD=others))


@dataclass(frozen=True)
class PreparedPictures(Prepared):
    """`real` are those of the reference, on the driver alone."""

    real: SmallPictures | None

    def __reduce__(self) -> tuple[type[PreparedPictures], tuple[None]]:
        return (type(self), (None,))  # workers have no use for them

    @property
    def identity(self) -> object:
        """The size."""
        return SIDE

    def beside(
        self, source: SampleSource, index: int, drawn: Drawn, extractors: Sequence[Extractor]
    ) -> Mapping[str, Array]:
        """Those of a block, and a number for each caption."""
        found: dict[str, Any] = {NAME: small(drawn.images)}
        if isinstance(source, GivesCaptions) and source.captioned:
            texts = source.captions_of(index)[: len(drawn.images)]
            found[f"{NAME}.condition"] = np.array([_number(text) for text in texts], np.int64)
        return found

    def of_reference(self, features: FeatureSet, name: str, made: Made) -> FeatureSet:
        """With the real ones."""
        return replace(features, inputs={**features.inputs, NAME: self.real})

    def of_generated(self, features: FeatureSet, name: str, made: Made) -> FeatureSet:
        """With those of the samples."""
        pixels = made.beside(NAME)
        assert pixels is not None, "workers make them"
        pictures = SmallPictures(pixels, made.beside(f"{NAME}.condition"))
        return replace(features, inputs={**features.inputs, NAME: pictures})


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def _all(blocks: Iterable[UInt8Array]) -> UInt8Array:
    return np.concatenate([small(block) for block in blocks])

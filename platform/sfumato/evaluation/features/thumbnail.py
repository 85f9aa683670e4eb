"""The image itself at 8x8 pixels: features that need no network.

For evaluations whose figures read none, and as the plainest of all measures of colours and layouts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from sfumato.core.batch import DataSpec
from sfumato.core.config import Config
from sfumato.evaluation.features.extractor import Extracted, FeatureKind
from sfumato.evaluation.references.reference import Reference
from sfumato.evaluation.statistics import UInt8Array

SIDE = 8


class ThumbnailOptions(Config):
    """There are none."""


class ThumbnailExtractor:
    """Means of 8x8 equal parts of an image, in [-1, 1], for every channel."""

    name = "thumbnail"
    digest = "thumbnail 8 v1"
    facts: Mapping[str, object] = {"side": SIDE}

    def __init__(self, channels: int) -> None:
        self.dim = channels * SIDE**2

    def extract(self, images_NHWC: UInt8Array) -> Extracted:
        """Features [N, channels * 64] of uint8 images of any size."""
        x_BCHW = torch.from_numpy(np.ascontiguousarray(images_NHWC)).permute(0, 3, 1, 2).double()
        small_BCHW = F.adaptive_avg_pool2d(x_BCHW / 127.5 - 1, SIDE)
        return Extracted(small_BCHW.flatten(1).float().numpy())


class ThumbnailKind:
    """Always there."""

    name = "thumbnail"
    classifies = False
    gives_logits = False
    options: type[Config] = ThumbnailOptions

    def problems(self, data: DataSpec) -> list[str]:
        """Smaller images."""
        if min(data.height, data.width) >= SIDE:
            return []
        got = f"{data.width}x{data.height}"
        return [f"features thumbnail need images of {SIDE}x{SIDE} or more, this data is {got}"]

    def dimension(self, options: Config, data: DataSpec) -> int:
        """64 for each channel."""
        return data.channels * SIDE**2

    def build(self, reference: Reference, options: Config, cache: Path) -> ThumbnailExtractor:
        """Nothing is loaded."""
        return ThumbnailExtractor(reference.spec.channels)


FEATURES: tuple[FeatureKind, ...] = (ThumbnailKind(),)

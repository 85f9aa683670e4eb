"""Uniform noise: images that precision and density must refuse. Features on which they do not are unfit.

A manifold of balls around real images takes noise in where balls are large: for few images in many
dimensions, or on features that never saw anything like noise. Every evaluation measures how much they take.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from sfumato.core.batch import DataSpec
from sfumato.evaluation.feature_set import FeatureSet
from sfumato.evaluation.features.extractor import Extractor
from sfumato.evaluation.metric_options import MetricOptions

IMAGES = 32
"""Few: the share is wanted to a few hundredths, and an extractor may take a second for ten images."""

Noise = Callable[[str], FeatureSet]
"""Features of noise, by the extractor's name."""


def noise_on(extractors: Sequence[Extractor], data: DataSpec, options: MetricOptions) -> Noise:
    """Features of uniform noise of the data's shape, the same in every evaluation; made when asked for."""
    by_name = {extractor.name: extractor for extractor in extractors}
    count = max(IMAGES, 2 * options.k, 2 * options.density_k)

    @cache
    def noise(name: str) -> FeatureSet:
        shape = (count, data.height, data.width, data.channels)
        images_NHWC = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        return FeatureSet(by_name[name].extract(images_NHWC).embedding_ND)

    return noise

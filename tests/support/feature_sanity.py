"""Sets of images whose order every metric has to get right, and where it does not.

Half of the real images are the reference. What is compared with it is made from the other half, all of it of
one size: the half itself, fewer classes, blurred, compressed and noisy images, one image repeated, and noise.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from sfumato.core.batch import DataSpec
from sfumato.evaluation.feature_set import FeatureSet
from sfumato.evaluation.features.extractor import Extractor
from sfumato.evaluation.metric_options import MetricOptions, MetricSettings
from sfumato.evaluation.metrics import all_metrics
from sfumato.evaluation.metrics.kid import KidSettings
from sfumato.evaluation.references.reference import ImageBlock

U8 = NDArray[np.uint8]
Labels = NDArray[np.int64]

METRICS = ("fd", "kid", "precision", "recall", "density", "coverage")
REAL, FEWER, BLUR, JPEG, REPEATED, UNIFORM = (
    "real",
    "fewer classes",
    "blur",
    "jpeg 10",
    "one image",
    "uniform",
)
STRENGTHS = (16, 32, 64, 128)
SLACK = 0.03
"""By which shares and densities may differ in the wrong direction: samples are few."""


@dataclass(frozen=True)
class InMemory:
    """A reference of arrays."""

    images_NHWC: U8
    labels_N: Labels
    digest: str

    @property
    def spec(self) -> DataSpec:
        classes = tuple(f"class {label:04d}" for label in range(int(self.labels_N.max()) + 1))
        height, width, channels = self.images_NHWC.shape[1:]
        return DataSpec(channels, height, width, classes)

    @property
    def size(self) -> int:
        return len(self.labels_N)

    def read(self, first: int, stop: int) -> ImageBlock:
        return self.images_NHWC[first:stop], self.labels_N[first:stop]

    def blocks(self) -> Iterator[ImageBlock]:
        for first in range(0, self.size, 512):
            yield self.read(first, first + 512)


def halves(images_NHWC: U8, labels_N: Labels, name: str) -> tuple[InMemory, InMemory]:
    """The reference, and the real images that the compared sets are made from."""
    order = np.random.default_rng(0).permutation(len(labels_N))
    middle = len(order) // 2
    first, second = order[:middle], order[middle:]
    return (
        InMemory(images_NHWC[first], labels_N[first], f"{name} first half"),
        InMemory(images_NHWC[second], labels_N[second], f"{name} second half"),
    )


def compared(rest: InMemory, most: int) -> dict[str, U8]:
    """The sets by name, at most `most` images each."""
    rng = np.random.default_rng(1)
    kept = np.flatnonzero(rest.labels_N <= rest.labels_N.max() // 2)
    count = min(most, len(kept))
    images = rest.images_NHWC[:count]
    noise = rng.standard_normal(images.shape)
    found = {
        REAL: images,
        FEWER: rest.images_NHWC[kept[:count]],
        BLUR: _each(images, lambda image: image.filter(ImageFilter.GaussianBlur(max(1, image.width / 24)))),
        JPEG: _each(images, _compressed),
    }
    for strength in STRENGTHS:
        found[f"noise {strength}"] = (images + strength * noise).round().clip(0, 255).astype(np.uint8)
    found[REPEATED] = np.repeat(images[:1], count, axis=0)
    found[UNIFORM] = rng.integers(0, 256, images.shape, dtype=np.uint8)
    return found


def figures(
    extractor: Extractor, real: InMemory, sets: Mapping[str, U8], k: int = 3, **options: object
) -> dict[str, dict[str, float]]:
    """Every metric of every set, by the set's name."""
    reference = FeatureSet(extractor.extract(real.images_NHWC).embedding_ND)
    count = len(next(iter(sets.values())))
    own = _settings(kid_subset_size=min(count, len(reference)), kid_subsets=1, **options)
    settings = MetricOptions(k=k, settings=own)
    found = {}
    for name, images in sets.items():
        made = FeatureSet(extractor.extract(images).embedding_ND)
        found[name] = {
            metric: all_metrics()[metric].compute(reference, made, settings).value for metric in METRICS
        }
    return found


def faults(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What is out of order, one line each."""
    noises = [f"noise {strength}" for strength in STRENGTHS]
    lines = [f"{UNIFORM}: precision {found[UNIFORM]['precision']:.3f}, wanted below 0.05"]
    wrong = lines if found[UNIFORM]["precision"] >= 0.05 else []
    if found[REPEATED]["recall"] >= 0.01:
        wrong.append(f"{REPEATED}: recall {found[REPEATED]['recall']:.3f}, wanted below 0.01")
    for metric in ("fd", "kid"):
        wrong += _ordered(found, metric, [REAL, *noises], higher=False)
        for worse in (FEWER, BLUR, JPEG, REPEATED, UNIFORM):
            wrong += _ordered(found, metric, [REAL, worse], higher=False)
    for metric in ("precision", "density"):
        wrong += _ordered(found, metric, [REAL, *noises], higher=True)
        for worse in (BLUR, JPEG, UNIFORM):
            wrong += _ordered(found, metric, [REAL, worse], higher=True)
    wrong += _ordered(found, "recall", [REAL, FEWER, REPEATED], higher=True)
    wrong += _ordered(found, "coverage", [REAL, FEWER, REPEATED], higher=True)
    wrong += _ordered(found, "coverage", [REAL, *noises], higher=True)
    return wrong


def _ordered(
    found: Mapping[str, Mapping[str, float]], metric: str, names: Sequence[str], *, higher: bool
) -> list[str]:
    """The neighbours in `names`, from good to bad, that the metric has in the wrong order."""
    slack = 0.0 if metric in ("fd", "kid") else SLACK
    sign = 1 if higher else -1
    return [
        f"{metric}: {better} {found[better][metric]:.4g}, {worse} {found[worse][metric]:.4g}"
        for better, worse in itertools.pairwise(names)
        if sign * found[better][metric] < sign * found[worse][metric] - slack
    ]


def _each(images_NHWC: U8, change: Callable[[Image.Image], Image.Image]) -> U8:
    mode = "L" if images_NHWC.shape[-1] == 1 else "RGB"
    changed = [
        np.asarray(change(Image.fromarray(image.squeeze(-1) if mode == "L" else image)))
        for image in images_NHWC
    ]
    return np.stack(changed).reshape(images_NHWC.shape)


def _compressed(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=10)
    return Image.open(buffer)


def _settings(**fields: object) -> MetricSettings:
    from sfumato.evaluation.metrics.settings import settings_class

    assert issubclass(settings_class(), KidSettings)
    return settings_class().model_validate(fields)

"""What a metric is: a pure function of a reference and a generated feature set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from sfumato.core.batch import DataSpec
from sfumato.core.config import Config
from sfumato.evaluation.parallel_map import Spread, in_process
from sfumato.evaluation.statistics import Float32Array, Float64Array, Int64Array, Moments, UInt8Array

T = TypeVar("T")
Interpolation = Literal["slerp", "lerp"]
ImageBlocks = Callable[[], Iterator[UInt8Array]]
"""Opens a set's images: uint8 [n, H, W, C], a block at a time, in sample order."""


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Features of one set of images, in sample order.

    `embedding_ND` float32; `logits_NK` float32 where the extractor classifies; `label_N` int64 in [0, K)
    where the images have classes (for generated images: the class that was asked for). Some metrics read
    more: `images` themselves, `text_ND` float32 (features of the captions in the same space; of a reference,
    of its first images), `bits_N` float64 (bits per dimension that the model under evaluation gives these
    images) and of what variable, `bits_of`, `path_M` float64 (lengths of the model's steps in its latents),
    `held_out` (of a reference: real images that the model was not trained on).
    """

    embedding_ND: Float32Array
    logits_NK: Float32Array | None = None
    label_N: Int64Array | None = None
    images: ImageBlocks | None = None
    text_ND: Float32Array | None = None
    bits_N: Float64Array | None = None
    bits_of: str = ""
    path_M: Float64Array | None = None
    held_out: FeatureSet | None = None
    _derived: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.embedding_ND)

    def take(self, rows: Int64Array | npt.NDArray[np.bool_]) -> FeatureSet:
        """The features of some of the images, in the order asked for; with nothing else but their texts."""

        def part(array: npt.NDArray[Any] | None) -> Any:
            return None if array is None else array[rows]

        return FeatureSet(
            self.embedding_ND[rows],
            part(self.logits_NK),
            part(self.label_N),
            text_ND=part(self.text_ND),
            bits_N=part(self.bits_N),
        )

    @cached_property
    def moments(self) -> Moments:
        return Moments.of(self.embedding_ND)

    def derived(self, key: tuple[object, ...], make: Callable[[], T]) -> T:
        """`make()`, once for each key: what several metrics need of this set, such as its neighbours."""
        if key not in self._derived:
            self._derived[key] = make()
        result: T = self._derived[key]
        return result


class MetricSettings(Config):
    """What single metrics let the user choose. Figures compare at equal settings only."""

    kid_subsets: int = Field(100, ge=1, description="kid: random subsets that the distance is averaged over.")
    kid_subset_size: int = Field(1000, ge=2, description="kid: images in a subset, of either set.")
    kid_all_samples: int = Field(
        20_000,
        ge=0,
        description="kid: where neither set has more images, the estimate on all of them is computed too, "
        "whose cost grows with their square.",
    )
    inception_score_splits: int = Field(
        10, ge=1, description="inception_score: parts that the score is computed on."
    )
    infinity_points: int = Field(
        15, ge=3, description="fd_infinity: numbers of samples at which the distance is computed."
    )
    infinity_start: float = Field(
        0.1, gt=0, lt=1, description="fd_infinity: the smallest of them, as a part of all samples."
    )
    memorisation_quantile: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="memorisation: a sample counts as copied when it is closer to a training image than all "
        "but this part of real images that are no copies.",
    )
    cas_seen: int = Field(
        40_000, gt=0, description="classification_score: samples that its classifier sees, repeats counted."
    )
    path_pairs: int = Field(
        1_000, ge=100, description="perceptual_path_length: pairs of images, a step apart."
    )
    path_epsilon: float = Field(1e-4, gt=0, le=0.1, description="perceptual_path_length: length of the step.")
    path_interpolation: Interpolation = Field(
        "slerp", description="perceptual_path_length: along the great circle, or straight (lerp)."
    )
    path_sampling: Literal["full", "end"] = Field(
        "full", description="perceptual_path_length: steps anywhere on a path, or at its start."
    )
    seed: int = Field(2020, ge=0, description="Seed of random subsets; torch-fidelity's default.")


DEFAULTS = MetricSettings()


@dataclass(frozen=True, slots=True)
class MetricOptions:
    """The settings that metrics share.

    `spread` runs the parts of large computations, in this process or on workers; no number depends on it.
    """

    k: int = 3
    settings: MetricSettings = DEFAULTS
    spread: Spread = in_process


@dataclass(frozen=True, slots=True)
class MetricResult:
    """One number and what explains it; `details` holds plain JSON values only.

    Where `value` is a mean of independent terms, `terms_M` are those terms (an indicator or a figure for
    every image): its interval is then a bootstrap over them. Where the method comes with a standard error of
    its own, `error` is it. Other numbers get theirs from a jackknife, ten computations more; a metric that is
    too costly for that says in `no_interval` why there is none.
    """

    name: str
    value: float
    details: Mapping[str, object] = field(default_factory=dict)
    terms_M: Float64Array | None = None
    error: float | None = None
    no_interval: str = ""


class Metric(Protocol):
    """One number a feature set. A file in this folder lists its own in `METRICS`, which is how it is found.

    Derive from `BaseMetric` and say what differs from it.
    """

    name: str
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
    needs_captions: bool
    """It reads `FeatureSet.text_ND` of the generated set."""
    needs_likelihood: bool
    """It reads `FeatureSet.bits_N` of the reference: the model must have a likelihood."""
    reads_held_out: bool
    """It reads `FeatureSet.held_out` of the reference where there is one."""
    needs_paths: bool
    """It reads `FeatureSet.path_M` of the generated set: the model must have a latent vector."""
    only_features: tuple[str, ...]
    """Names of the only features that it is defined on; empty: all."""
    always_suffixed: bool
    """Whether its name carries the features' even when an evaluation uses one kind alone."""
    published: str | None
    """Its name on the features of its paper, InceptionV3 of 2015-12-05 (`fid`); None: no other."""

    def least_samples(self, options: MetricOptions) -> int:
        """How many images it needs of either set."""
        ...

    def problems(self, data: DataSpec) -> list[str]:
        """Why this metric cannot be computed for images of this kind; one line each."""
        ...

    def compute(
        self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions
    ) -> MetricResult: ...


class BaseMetric:
    """A metric on embeddings alone, computed when asked for by name; subclasses set what differs."""

    higher_is_better = False
    in_auto = False
    needs_logits = False
    needs_any_logits = False
    needs_labels = False
    needs_images = False
    needs_captions = False
    needs_likelihood = False
    reads_held_out = False
    needs_paths = False
    only_features: tuple[str, ...] = ()
    always_suffixed = False
    published: str | None = None

    def least_samples(self, options: MetricOptions) -> int:
        """One image."""
        return 1

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

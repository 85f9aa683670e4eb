"""What a metric is: a pure function of a reference and a generated feature set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sfumato.core.batch import DataSpec
from sfumato.evaluation.statistics import Float32Array, Float64Array, Int64Array, Moments, UInt8Array


@dataclass(frozen=True)
class FeatureSet:
    """Features of one set of images, in sample order.

    `embedding_ND` float32; `logits_NK` float32 where the extractor classifies; `label_N` int64 in [0, K)
    where the images have classes (for generated images: the class that was asked for).
    """

    embedding_ND: Float32Array
    logits_NK: Float32Array | None = None
    label_N: Int64Array | None = None

    def __len__(self) -> int:
        return len(self.embedding_ND)

    def take(self, rows: Int64Array | npt.NDArray[np.bool_]) -> FeatureSet:
        """The features of some of the images, in the order asked for."""
        return FeatureSet(
            self.embedding_ND[rows],
            None if self.logits_NK is None else self.logits_NK[rows],
            None if self.label_N is None else self.label_N[rows],
        )

    @cached_property
    def moments(self) -> Moments:
        return Moments.of(self.embedding_ND)


@dataclass(frozen=True, slots=True)
class MetricOptions:
    """The settings that metrics share."""

    k: int = 3


@dataclass(frozen=True, slots=True)
class MetricResult:
    """One number and what explains it; `details` holds plain JSON values only.

    Where `value` is a mean of independent terms, `terms_M` are those terms (an indicator or a figure for
    every image): its interval is then a bootstrap over them. Other numbers get theirs from a jackknife.
    """

    name: str
    value: float
    details: Mapping[str, object] = field(default_factory=dict)
    terms_M: Float64Array | None = None


class Metric(Protocol):
    """One number a feature set. A file in this folder lists its own in `METRICS`, which is how it is found.

    `needs_logits` and `needs_labels` say what must be there. `always_suffixed` metrics carry the name of
    their features even when an evaluation uses one kind of features alone (`fd_classifier`).
    """

    name: str
    higher_is_better: bool
    needs_logits: bool
    needs_labels: bool
    always_suffixed: bool

    def least_samples(self, options: MetricOptions) -> int:
        """How many images it needs of either set."""
        ...

    def problems(self, data: DataSpec) -> list[str]:
        """Why this metric cannot be computed for images of this kind; one line each."""
        ...

    def compute(
        self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions
    ) -> MetricResult: ...


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

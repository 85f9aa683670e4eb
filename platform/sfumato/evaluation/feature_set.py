"""Features of one set of images, which metrics compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from sfumato.evaluation.statistics import Float32Array, Float64Array, Int64Array, Moments, UInt8Array

T = TypeVar("T")
ImageBlocks = Callable[[], Iterator[UInt8Array]]
"""Opens a set's images: uint8 [n, H, W, C], a block at a time, in sample order."""


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Features of one set of images, in sample order.

    `embedding_ND` float32; `logits_NK` float32 if the extractor classifies; `label_N` int64 in [0, K)
    if the images have classes (for generated images: the requested class). Some metrics read
    more: `images` themselves, `text_ND` float32 (features of the captions in the same space; of a reference,
    of its first images), `bits_N` float64 (bits per dimension that the model under evaluation gives these
    images) and of what variable, `bits_of`, `path_M` float64 (lengths of the model's steps in its latents),
    `held_out` (of a reference: real images that the model was not trained on), and in `inputs`, by
    name, the values of other inputs (`metric_inputs.py`).
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
    inputs: Mapping[str, Any] = field(default_factory=dict)
    _derived: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.embedding_ND)

    def take(self, rows: Int64Array | npt.NDArray[np.bool_]) -> FeatureSet:
        """The features of some of the images, in the requested order; with nothing else but their texts."""

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
        """`make()`, once for each key: results that several metrics need, such as the set's neighbours."""
        if key not in self._derived:
            self._derived[key] = make()
        result: T = self._derived[key]
        return result

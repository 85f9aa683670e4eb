"""Features of real images in blocks: read, extracted by every extractor and kept until all are there.

An image is read once for all extractors. Blocks are as large as the batches of the extractors and end where
the parts of a set end, so that features have the same bits whoever makes them, in one go or resumed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sfumato.errors import DataError
from sfumato.evaluation.blocks.store import LABEL, BlockStore, FeatureBlock
from sfumato.evaluation.features.extractor import CHUNK, Extractor
from sfumato.evaluation.references.reference import MOST_FAULTS, Reference
from sfumato.evaluation.store import Array
from sfumato.evaluation.subjects.image_set import ImageBlock

EMBEDDING = "embedding"
LOGITS = "logits"


@dataclass(frozen=True, slots=True)
class Part:
    """Images `first` to `stop` - 1: block `index` of a set, for the extractors that lack it."""

    index: int
    first: int
    stop: int
    extractors: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its file, without the suffix."""
        return f"{self.index:06d}"

    def __len__(self) -> int:
        return self.stop - self.first


Made = tuple[Part, Mapping[str, FeatureBlock]]
"""A part's blocks, by the extractor's name."""


def parts_of(reference: Reference) -> list[Part]:
    """All images of a set."""
    return [Part(n, rows.start, rows.stop) for n, rows in enumerate(reference.parts(CHUNK))]


@dataclass(frozen=True, slots=True)
class Extracting:
    """What a worker needs to make blocks of a set; every worker receives a copy."""

    reference: Reference
    extractors: Sequence[Extractor]

    def __call__(self) -> Callable[[Part], Made]:
        """Makes the blocks of a part."""
        return self._make

    def _make(self, part: Part) -> Made:
        block = self.reference.read(part.first, part.stop)
        _check(block, self.reference)
        wanted = [extractor for extractor in self.extractors if extractor.name in part.extractors]
        return part, {extractor.name: _extracted(extractor, part, block) for extractor in wanted}


def joined_features(store: BlockStore, parts: Sequence[Part], size: int) -> dict[str, Array]:
    """The arrays of all blocks of a set of `size` images, in its order.

    Raises DataError if more images than `MOST_FAULTS` were left out, or all.
    """
    arrays = {name: store.arrays(parts, name, size) for name in (EMBEDDING, LOGITS, LABEL)}
    found = {name: array for name, array in arrays.items() if array is not None}
    rows = len(found[EMBEDDING]) if found else 0
    if rows == 0:
        raise DataError("the reference data holds no usable image")
    if size - rows > MOST_FAULTS:
        raise DataError(f"{size - rows} samples cannot be used, more than max_errors={MOST_FAULTS}")
    return found


def _extracted(extractor: Extractor, part: Part, block: ImageBlock) -> FeatureBlock:
    start = time.perf_counter()
    images, label_N = block
    arrays: dict[str, Array] = {}
    if len(images):
        extracted = extractor.extract(images)
        arrays[EMBEDDING] = extracted.embedding_ND
        if extracted.logits_NK is not None:
            arrays[LOGITS] = extracted.logits_NK
        if label_N is not None:
            arrays[LABEL] = label_N
        if not np.isfinite(extracted.embedding_ND).all():
            raise DataError(f"features {extractor.name} of the reference are not finite")
    return FeatureBlock(part.name, arrays, len(images), time.perf_counter() - start)


def _check(block: ImageBlock, reference: Reference) -> None:
    images, label_N = block
    spec = reference.spec
    if images.shape[1:] != (spec.height, spec.width, spec.channels) or images.dtype != np.uint8:
        raise DataError(
            f"the reference holds {images.dtype} images of shape {images.shape[1:]}, but its manifest states "
            f"uint8 {(spec.height, spec.width, spec.channels)}: pack it again"
        )
    if label_N is None or len(images) == 0:
        return
    if len(label_N) != len(images) or label_N.min() < 0 or label_N.max() >= spec.num_classes:
        raise DataError(
            f"the reference has labels {label_N.min()} to {label_N.max()}, but its manifest names "
            f"{spec.num_classes} classes: pack it again"
        )

"""A block of images: drawn, turned into features, kept on disk until the evaluation is complete.

Blocks are the unit of retry and of resumption. Those of a model are always full, including the last one, so a
sample's features depend neither on the requested number of samples nor on the worker.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sfumato.errors import SfumatoError
from sfumato.evaluation.blocks.store import IMAGES, LABEL, FeatureBlock
from sfumato.evaluation.features.extractor import Extractor, one_thread
from sfumato.evaluation.metric_inputs import Prepared
from sfumato.evaluation.metrics.metric import PairMetric
from sfumato.evaluation.statistics import Int64Array, UInt8Array
from sfumato.evaluation.store import Array
from sfumato.evaluation.subjects.source import Drawn, SampleSource

PAIR = "pair"


@dataclass(frozen=True, slots=True)
class Task:
    """One block to make: its index, the labels [block] if the model takes them, whether to keep images.

    A block of an input (`metric_inputs.py`) holds its own rows instead; `kind` is then the input's name
    and `stored_as` the name of its file and array.
    """

    index: int
    labels_B: Int64Array | None
    keep_images: bool
    kind: str = IMAGES
    stored_as: str = ""

    @property
    def name(self) -> str:
        """Its file, without the suffix."""
        return f"{self.stored_as}-{self.index:06d}" if self.stored_as else f"{self.index:06d}"


class BlockMaker:
    """Makes blocks; one lives in every worker. Errors name the block."""

    def __init__(
        self,
        source: SampleSource,
        extractors: Sequence[Extractor],
        *,
        seed: int,
        pairs: Mapping[str, PairMetric],
        inputs: Mapping[str, Prepared] | None = None,
    ) -> None:
        self._source = source
        self._extractors = extractors
        self._seed = seed
        self._pairs = pairs
        self._inputs = inputs or {}

    def make(self, task: Task) -> FeatureBlock:
        start = time.perf_counter()
        if task.kind != IMAGES:
            with one_thread():
                value_B = self._inputs[task.kind].block(
                    self._source, task.index, seed=self._seed, labels_B=task.labels_B
                )
            return FeatureBlock(
                task.name, {task.stored_as: value_B}, len(value_B), time.perf_counter() - start
            )
        with one_thread():
            drawn = self._source.draw(task.index, seed=self._seed, labels_B=task.labels_B)
        seconds = time.perf_counter() - start
        self._check_images(task.index, drawn.images)
        arrays: dict[str, Array] = {IMAGES: drawn.images} if task.keep_images else {}
        if drawn.label_B is not None:
            arrays[LABEL] = drawn.label_B
        arrays |= self._measured(task.index, drawn)
        return FeatureBlock(task.name, arrays, len(drawn.images), seconds, drawn.evaluations)

    def _measured(self, index: int, drawn: Drawn) -> dict[str, Array]:
        arrays: dict[str, Array] = {}
        for extractor in self._extractors:
            extracted = extractor.extract(drawn.images)
            if not np.isfinite(extracted.embedding_ND).all():
                raise SfumatoError(f"block {index}: features {extractor.name} are not finite")
            arrays[f"{extractor.name}.embedding"] = extracted.embedding_ND
            if extracted.logits_NK is not None:
                arrays[f"{extractor.name}.logits"] = extracted.logits_NK
        for prepared in self._inputs.values():
            arrays |= prepared.beside(self._source, index, drawn, self._extractors)
        if drawn.real is not None:
            for name, metric in self._pairs.items():
                arrays[f"{PAIR}.{name}"] = metric.compare(drawn.real, drawn.images)
        return arrays

    def _check_images(self, index: int, images: UInt8Array) -> None:
        spec, source = self._source.spec, self._source
        rows = source.block if source.size is None else min(source.block, source.size - index * source.block)
        expected = (rows, spec.height, spec.width, spec.channels)
        # A set that leaves damaged images out may give fewer rows.
        short = source.size is not None and len(images) <= rows
        if images.dtype != np.uint8 or images.shape[1:] != expected[1:] or not (len(images) == rows or short):
            raise SfumatoError(
                f"block {index}: the model gave {images.dtype} {images.shape}, wanted uint8 {expected}"
            )

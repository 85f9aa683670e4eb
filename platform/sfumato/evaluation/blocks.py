"""A block of images: drawn, turned into features, kept on disk until the evaluation is complete.

Blocks are the unit of retry and of resumption. Those of a model are always full, including the last one, so a
sample's features depend neither on the requested number of samples nor on the worker.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sfumato.errors import SfumatoError
from sfumato.evaluation.feature_set import FeatureSet
from sfumato.evaluation.features.extractor import Extractor, one_thread
from sfumato.evaluation.metric_inputs import Prepared
from sfumato.evaluation.metrics.metric import PairMetric
from sfumato.evaluation.source import Drawn, SampleSource
from sfumato.evaluation.statistics import Int64Array, UInt8Array
from sfumato.evaluation.store import Array, is_whole, read_arrays, write_arrays

IMAGES = "images"
LABEL = "label"
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


@dataclass(frozen=True, slots=True)
class FeatureBlock:
    """A finished block: its name, arrays by name, and the seconds that its `rows` images took.

    `evaluations` is the number of network passes per image.
    """

    name: str
    arrays: Mapping[str, Array]
    rows: int
    seconds: float
    evaluations: float = 0.0


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


class BlockStore:
    """Finished blocks in a folder, one file each. The folder's name must identify what they depend on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def missing(self, tasks: Iterable[Task]) -> list[Task]:
        """The tasks without a complete file."""
        return [task for task in tasks if not is_whole(self._path(task.name))]

    def save(self, block: FeatureBlock) -> None:
        facts = {"rows": block.rows, "seconds": block.seconds, "evaluations": block.evaluations}
        write_arrays(self._path(block.name), block.arrays, facts)

    def load(self, task: Task, only: str | None = None) -> FeatureBlock:
        """A block, or one of its arrays."""
        path = self._path(task.name)
        stored = read_arrays(path, only)
        if stored is None:
            raise SfumatoError(f"{path} is missing or damaged: evaluate again to make it again")
        arrays, facts = stored
        return FeatureBlock(
            task.name, arrays, int(facts["rows"]), float(facts["seconds"]), float(facts["evaluations"])
        )

    def arrays(self, tasks: Sequence[Task], name: str, num: int) -> Array | None:
        """The first `num` rows of an array over all blocks in order; None if the blocks lack it."""
        parts = [self.load(task, name).arrays.get(name) for task in tasks]
        found = [part for part in parts if part is not None]
        return np.concatenate(found)[:num] if found else None

    def features(self, tasks: Sequence[Task], name: str, num: int, label_N: Int64Array | None) -> FeatureSet:
        """Features of the first `num` images, joined in the order of the blocks."""
        embedding = self.arrays(tasks, f"{name}.embedding", num)
        assert embedding is not None, f"blocks without features {name}"
        own = self.arrays(tasks, LABEL, num) if label_N is None else label_N
        logits = self.arrays(tasks, f"{name}.logits", num)
        return FeatureSet(embedding, logits, own, images=lambda: self.images(tasks, num))

    def images(self, tasks: Sequence[Task], num: int) -> Iterator[UInt8Array]:
        """The first `num` images, a block at a time, from blocks that kept them."""
        left = num
        for task in tasks:
            if left <= 0:
                return
            images = self.load(task, IMAGES).arrays[IMAGES][:left]
            left -= len(images)
            yield images

    def remove(self) -> None:
        """Delete all blocks."""
        shutil.rmtree(self.folder, ignore_errors=True)

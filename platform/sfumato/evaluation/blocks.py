"""A block of samples: generated, turned into features, kept on disk until the evaluation is whole.

Blocks are the unit of work, of retry and of resumption. They are always whole, also the last one, so a
sample's features depend neither on how many samples were asked for nor on who made them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sfumato.errors import SfumatoError
from sfumato.evaluation.features.extractor import Extractor, one_thread
from sfumato.evaluation.metrics.metric import FeatureSet
from sfumato.evaluation.source import SampleSource
from sfumato.evaluation.statistics import Int64Array, UInt8Array
from sfumato.evaluation.store import Array, is_whole, read_arrays, write_arrays

IMAGES = "images"


@dataclass(frozen=True, slots=True)
class Task:
    """One block to make: its index, the labels [block] where the model takes them, whether to keep images."""

    index: int
    labels_B: Int64Array | None
    keep_images: bool


@dataclass(frozen=True, slots=True)
class Block:
    """A finished block: arrays by name, and the seconds that generating it took."""

    index: int
    arrays: Mapping[str, Array]
    seconds: float


class BlockMaker:
    """Makes blocks; one lives in every worker. Errors name the block."""

    def __init__(self, source: SampleSource, extractors: Sequence[Extractor], *, seed: int) -> None:
        self._source = source
        self._extractors = extractors
        self._seed = seed

    def make(self, task: Task) -> Block:
        start = time.perf_counter()
        with one_thread():
            images = self._source.sample_block(task.index, seed=self._seed, labels_B=task.labels_B)
        seconds = time.perf_counter() - start
        self._check_images(task.index, images)
        arrays: dict[str, Array] = {IMAGES: images} if task.keep_images else {}
        for extractor in self._extractors:
            extracted = extractor.extract(images)
            if not np.isfinite(extracted.embedding_ND).all():
                raise SfumatoError(f"block {task.index}: features {extractor.name} are not finite")
            arrays[f"{extractor.name}.embedding"] = extracted.embedding_ND
            if extracted.logits_NK is not None:
                arrays[f"{extractor.name}.logits"] = extracted.logits_NK
        return Block(task.index, arrays, seconds)

    def _check_images(self, index: int, images: UInt8Array) -> None:
        spec = self._source.spec
        expected = (self._source.block, spec.height, spec.width, spec.channels)
        if images.shape != expected or images.dtype != np.uint8:
            raise SfumatoError(
                f"block {index}: the model gave {images.dtype} {images.shape} where uint8 {expected} was due"
            )


class BlockStore:
    """Finished blocks in a folder, one file each. The folder's name must say what the blocks depend on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, index: int) -> Path:
        return self._folder / f"{index:06d}.safetensors"

    def missing(self, indices: Iterable[int]) -> list[int]:
        """Those without a whole file."""
        return [index for index in indices if not is_whole(self._path(index))]

    def save(self, block: Block) -> None:
        write_arrays(self._path(block.index), block.arrays, {"seconds": block.seconds})

    def load(self, index: int) -> Block:
        stored = read_arrays(self._path(index))
        if stored is None:
            raise SfumatoError(f"{self._path(index)} vanished or was damaged: evaluate again to make it anew")
        arrays, facts = stored
        return Block(index, arrays, float(facts["seconds"]))

    def images(self, num: int) -> UInt8Array:
        """The first `num` samples, of blocks that kept their images."""
        parts: list[Array] = []
        while sum(map(len, parts)) < num:
            parts.append(self.load(len(parts)).arrays[IMAGES])
        return np.concatenate(parts)[:num]

    def features(self, name: str, num: int, label_N: Int64Array | None) -> FeatureSet:
        """Features of the first `num` samples, put together in the order of the blocks."""
        parts: dict[str, list[Array]] = {"embedding": [], "logits": []}
        index = rows = 0
        while rows < num:
            block = self.load(index)
            for kind, found in parts.items():
                array = block.arrays.get(f"{name}.{kind}")
                if array is not None:
                    found.append(array[: num - rows])
            rows, index = rows + len(parts["embedding"][-1]), index + 1
        logits = np.concatenate(parts["logits"]) if parts["logits"] else None
        return FeatureSet(np.concatenate(parts["embedding"]), logits, label_N)

    def seconds_per_block(self, blocks: int) -> float:
        """Mean seconds that one worker needed to generate a block."""
        return sum(self.load(index).seconds for index in range(blocks)) / blocks

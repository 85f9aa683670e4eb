"""Finished blocks on disk, one file each: the unit of retry and of resumption."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from sfumato.errors import SfumatoError
from sfumato.evaluation.feature_set import FeatureSet
from sfumato.evaluation.statistics import Int64Array, UInt8Array
from sfumato.evaluation.store import Array, is_whole, read_arrays, write_arrays

IMAGES = "images"
LABEL = "label"


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


class Named(Protocol):
    """A block to make, by the name of its file without the suffix."""

    @property
    def name(self) -> str: ...


N = TypeVar("N", bound=Named)


class BlockStore:
    """Finished blocks in a folder, one file each. The folder's name must identify what they depend on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def missing(self, tasks: Iterable[N]) -> list[N]:
        """The tasks without a complete file."""
        return [task for task in tasks if not is_whole(self._path(task.name))]

    def save(self, block: FeatureBlock) -> None:
        facts = {"rows": block.rows, "seconds": block.seconds, "evaluations": block.evaluations}
        write_arrays(self._path(block.name), block.arrays, facts)

    def load(self, task: Named, only: str | None = None) -> FeatureBlock:
        """A block, or one of its arrays."""
        path = self._path(task.name)
        stored = read_arrays(path, only)
        if stored is None:
            raise SfumatoError(f"{path} is missing or damaged: evaluate again to make it again")
        arrays, facts = stored
        return FeatureBlock(
            task.name, arrays, int(facts["rows"]), float(facts["seconds"]), float(facts["evaluations"])
        )

    def arrays(self, tasks: Sequence[Named], name: str, num: int) -> Array | None:
        """The first `num` rows of an array over all blocks in order; None if the blocks lack it."""
        parts = [self.load(task, name).arrays.get(name) for task in tasks]
        found = [part for part in parts if part is not None]
        return np.concatenate(found)[:num] if found else None

    def features(self, tasks: Sequence[Named], name: str, num: int, label_N: Int64Array | None) -> FeatureSet:
        """Features of the first `num` images, joined in the order of the blocks."""
        embedding = self.arrays(tasks, f"{name}.embedding", num)
        assert embedding is not None, f"blocks without features {name}"
        own = self.arrays(tasks, LABEL, num) if label_N is None else label_N
        logits = self.arrays(tasks, f"{name}.logits", num)
        return FeatureSet(embedding, logits, own, images=lambda: self.images(tasks, num))

    def images(self, tasks: Sequence[Named], num: int) -> Iterator[UInt8Array]:
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

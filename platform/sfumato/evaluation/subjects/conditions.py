"""Conditions of generated images: the requested classes, all others from the reference's own rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from sfumato.core.batch import Texts
from sfumato.core.columns import Kind
from sfumato.core.conditions import LABEL, Condition, Conditions, Listed, Rows, Source, Value
from sfumato.errors import DataError
from sfumato.evaluation.references.reference import Captioned, Reference
from sfumato.evaluation.statistics import Int64Array
from sfumato.sampling.generator import Generator
from sfumato.sampling.pixels import from_uint8


@runtime_checkable
class GivesConditions(Protocol):
    """A set of images that may have further columns."""

    def conditions(self, taken: Sequence[Condition]) -> Source:
        """Rows of the conditions for which it has columns."""
        ...


def given_by(reference: Reference, generator: Generator) -> Source:
    """The rows of the reference for every condition except the class of the image.

    Raises DataError if the reference has no column for a condition that the model needs.
    """
    taken = [condition for condition in generator.conditions if condition.name != LABEL.name]
    columns = reference.conditions(taken) if taken and isinstance(reference, GivesConditions) else {}
    found: dict[str, Rows] = {}
    for condition in taken:
        rows = _rows(condition, reference) or columns.get(condition.name)
        if rows is not None:
            found[condition.name] = rows
        elif condition.required:
            what = "captions" if condition.kind == "text" else f"the condition {condition.name!r}"
            has = "none: pack captions too" if condition.kind == "text" else f"no column {condition.column!r}"
            raise DataError(
                f"family {generator.config.family!r} draws images for {what}, but the reference has {has}"
            )
    return found


def of_block(generator: Generator, given: Source, index: int, labels_B: Int64Array | None) -> Conditions:
    """The conditions of the samples of block `index`; `labels_B` are its classes."""
    first = index * generator.block
    asked = {} if labels_B is None else {LABEL.name: Listed("label", torch.from_numpy(labels_B))}
    return generator.conditions_of({**given, **asked}, range(first, first + generator.block))


def _rows(condition: Condition, reference: Reference) -> Rows | None:
    """The conditions that any set of images has: its captions and its images."""
    if condition.kind == "text" and condition.column == "text":
        return CaptionRows(reference, reference.size) if _captioned(reference) else None
    if condition.kind == "image" and condition.column == "image" and reference.size:
        return ImageRows(reference)
    return None


def _captioned(reference: object) -> bool:
    return isinstance(reference, Captioned) and reference.captioned


class CaptionRows:
    """The captions of a set of images."""

    kind: Kind = "text"
    shape: tuple[int, ...] = ()
    classes = 0

    def __init__(self, images: Any, size: int) -> None:
        self._images, self._size = images, size

    def __len__(self) -> int:
        return self._size

    def read(self, rows: Sequence[int]) -> Texts:
        """Captions. Raises DataError for an image without one."""
        found = Texts()
        for run in _runs(rows):
            found += self._images.captions(run.start, run.stop) or [""] * len(run)
        return found

    def told(self, row: int) -> Any:
        """The caption."""
        return self.read([row])[0]


class ImageRows:
    """The images of a set, as conditions."""

    kind: Kind = "image"
    classes = 0

    def __init__(self, images: Reference) -> None:
        self._images = images
        self.shape: tuple[int, ...] = images.spec.shape

    def __len__(self) -> int:
        return self._images.size

    def read(self, rows: Sequence[int]) -> Value:
        """float32 [N, C, H, W] in [-1, 1]."""
        parts = [self._images.read(run.start, run.stop)[0] for run in _runs(rows)]
        return from_uint8(np.concatenate(parts))

    def told(self, row: int) -> Any:
        """Identifies the image of the set."""
        return {"reference": self._images.digest, "row": row}


def _runs(rows: Sequence[int]) -> Iterator[range]:
    """Numbers as ranges of consecutive ones, in their order."""
    start = 0
    for at in range(1, len(rows) + 1):
        if at == len(rows) or rows[at] != rows[at - 1] + 1:
            yield range(rows[start], rows[at - 1] + 1)
            start = at

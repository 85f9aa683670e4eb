"""A source over arrays in memory."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np

from sfumato.data.format.faults import Fault
from sfumato.data.format.images import U8
from sfumato.data.packing.resizing import Look
from sfumato.data.packing.source import I64, Record


class ArraySource:
    """Images uint8 [N, H, W, C] and labels int64 [N] (None: unlabelled). Keys are row numbers.

    `mark` names the state of the arrays' origin.
    """

    faults: Sequence[Fault] = ()

    def __init__(
        self,
        pixels_NHWC: U8,
        labels_N: I64 | None,
        classes: tuple[str, ...],
        description: str,
        mark: str = "",
    ) -> None:
        self._pixels_NHWC, self._mark = pixels_NHWC, mark
        # Which rows of the array these are, and the numbers that name them.
        self._rows_N = self._names_N = np.arange(len(pixels_NHWC))
        self.keys = [f"{row:08d}" for row in range(len(pixels_NHWC))]
        self.labels, self.classes, self.description = labels_N, classes, description
        _, height, width, channels = pixels_NHWC.shape
        self.uniform: Look | None = Look(width, height, channels == 1)

    def only(self, rows: Sequence[int]) -> ArraySource:
        part, chosen = copy.copy(self), np.asarray(rows, np.int64)
        part._rows_N, part._names_N = self._rows_N[chosen], self._names_N[chosen]
        part.keys = [self.keys[row] for row in rows]
        part.labels = None if self.labels is None else self.labels[chosen]
        return part

    def name(self, row: int) -> str:
        return f"row {self._names_N[row]}"

    def mark(self, row: int) -> str:
        return f"{self._mark}#{self._names_N[row]}"

    def read(self, row: int) -> Record:
        return Record(np.ascontiguousarray(self._pixels_NHWC[self._rows_N[row]]))

    def __getstate__(self) -> dict[str, object]:
        """Only the chosen rows travel."""
        pixels_NHWC = self._pixels_NHWC[self._rows_N]
        return self.__dict__ | {"_pixels_NHWC": pixels_NHWC, "_rows_N": np.arange(len(pixels_NHWC))}

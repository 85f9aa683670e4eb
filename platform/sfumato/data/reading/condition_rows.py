"""Columns of a packed data set as conditions: row i belongs to sample i in the manifest's order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sfumato.core.batch import Batch, Texts, to_device
from sfumato.core.columns import Kind
from sfumato.core.conditions import Condition, Source, Value
from sfumato.data.format.columns import TEXT
from sfumato.data.format.faults import OnError
from sfumato.data.format.manifest import Manifest
from sfumato.data.reading.batches import to_batch
from sfumato.data.reading.chunks import Columns
from sfumato.data.reading.local_reader import read_all
from sfumato.errors import DataError

_MOST = 512


class DataRows:
    """One column of a data set, read by ranges on request."""

    def __init__(self, condition: Condition, reading: _Reading) -> None:
        column = reading.manifest.spec.columns[condition.column]
        self.kind: Kind = column.kind
        self.shape = column.shape
        self.classes = len(column.classes)
        self._column, self._reading = condition.column, reading

    def __len__(self) -> int:
        return self._reading.manifest.samples

    def read(self, rows: Sequence[int]) -> Value:
        """As `Rows.read`. Raises DataError for a sample that cannot be read or lacks a caption."""
        value: Value = self._reading.rows(tuple(rows))[self._column]
        if isinstance(value, Texts):
            for row, text in zip(rows, value, strict=True):
                if not text:
                    raise DataError(f"{self._reading.folder}: image {row} has no {self._column}")
        return value

    def told(self, row: int) -> Any:
        """The data set and the row."""
        return {"data": self._reading.folder, "row": row}


class _Reading:
    """Rows of a data set; the last ones are kept, since every column asks for the same."""

    def __init__(
        self, folder: str, manifest: Manifest, on_error: OnError, taken: Sequence[Condition]
    ) -> None:
        self.folder, self.manifest, self._on_error = folder, manifest, on_error
        columns = {condition.column for condition in taken}
        self._further = sorted(columns & manifest.columns.keys())
        self._text = TEXT in columns and TEXT not in self._further
        spec = manifest.spec.columns
        self._images = [name for name in ("image", *self._further) if spec[name].kind == "image"]
        self._kept: tuple[tuple[int, ...], Batch] = ((), {})

    def rows(self, rows: tuple[int, ...]) -> Batch:
        if self._kept[0] != rows:
            wanted = sorted(set(rows))
            parts = [part for run in _runs(wanted) for part in self._read(run)]
            place = {row: number for number, row in enumerate(wanted)}
            order = np.array([place[row] for row in rows])
            columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            ordered = {name: column[order] for name, column in columns.items()}
            self._kept = rows, to_device(to_batch(ordered, self._images), torch.device("cpu"))
        return self._kept[1]

    def _read(self, run: range) -> Sequence[Columns]:
        found = self._usable(run)
        if sum(len(part["image"]) for part in found) == len(run):
            return found
        return [part for row in run for part in self._next_usable(row)]

    def _next_usable(self, row: int) -> Sequence[Columns]:
        """A row, or if it cannot be used and may be skipped, the first after it that can."""
        size = self.manifest.samples
        for at in (number % size for number in range(row, row + size)):
            if found := self._usable(range(at, at + 1)):
                return found
        raise DataError(f"{self.folder}: holds no sample that can be used")

    def _usable(self, run: range) -> Sequence[Columns]:
        found = read_all(
            self.folder,
            on_error=self._on_error,
            first=run.start,
            stop=run.stop,
            manifest=self.manifest,
            text=self._text,
            columns=self._further,
        )
        return [part for part in found if len(part["image"])]


def rows_of_data(
    folder: str, taken: Sequence[Condition], on_error: OnError = "fail", *, missing: bool = False
) -> Source:
    """The conditions for which a data set has columns.

    Of a set with buckets, only images of its most common size count. Raises DataError if there is no data set
    or, unless `missing` permits it, for one that has none of these columns.
    """
    manifest = Manifest.load(folder).of_its_size()
    columns = manifest.spec.columns
    wanted = [condition for condition in taken if condition.column in columns]
    if not wanted and not missing:
        asked = ", ".join(sorted({condition.column for condition in taken})) or "none"
        raise DataError(
            f"{folder}: it has the columns {', '.join(sorted(columns))}, but this model's conditions need "
            f"{asked}"
        )
    reading = _Reading(folder, manifest, on_error, wanted)
    return {condition.name: DataRows(condition, reading) for condition in wanted}


def _runs(rows: Sequence[int]) -> Sequence[range]:
    """Ascending numbers as ranges of consecutive ones, up to 512 long."""
    runs: list[range] = []
    for row in rows:
        if runs and runs[-1].stop == row and len(runs[-1]) < _MOST:
            runs[-1] = range(runs[-1].start, row + 1)
        else:
            runs.append(range(row, row + 1))
    return runs

"""Side files with a value for each of a sample's texts: any number a sample, without padding.

Values stand one after another in the order of samples and texts. Of each, the zeros at the end of its first
axis are left out, so that a text of five tokens takes the place of five. At the end of the file are, as
little-endian int64, the number of the first value of every sample and that of all values [N + 1], the first
byte of every value and the end of the last [M + 1], and N and M themselves.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.data.format.columns import ColumnInfo, SideFile, numpy_type
from sfumato.data.format.ranges import Range, read_ranges
from sfumato.errors import DataError

_INT = np.dtype("<i8")
_LEAST = 8 * 4
"""Bytes of a file without a sample."""


@dataclass(frozen=True, slots=True)
class Table:
    """Where the values of a file are."""

    firsts: NDArray[np.int64]
    """[N + 1]: the number of every sample's first value."""
    starts: NDArray[np.int64]
    """[M + 1]: the first byte of every value."""

    @property
    def samples(self) -> int:
        return len(self.firsts) - 1

    def range(self, row: int, number: int) -> Range:
        """The bytes of a sample's value of this number; of its first, if it has fewer."""
        first, end = int(self.firsts[row]), int(self.firsts[row + 1])
        value = first + number if first + number < end else first
        return int(self.starts[value]), int(self.starts[value + 1] - self.starts[value])


class PlainWriter:
    """Writes a side file of one value a sample."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.with_name(f".{path.name}.part").open("wb")
        self._digest = hashlib.sha256()

    def add(self, value: NDArray[Any]) -> None:
        """Another value of the sample at hand."""
        self.write(value.tobytes())

    def end_sample(self) -> None:
        """The next value belongs to the next sample."""

    def close(self, name: str) -> SideFile:
        """Put the file in its place; its description under this name."""
        size = self._file.tell()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._file.name, self._path)
        return SideFile(name=name, bytes=size, sha256=self._digest.hexdigest())

    def write(self, content: bytes) -> int:
        """These bytes as they are; returns their number."""
        self._digest.update(content)
        return self._file.write(content)


class Writer(PlainWriter):
    """Writes a file of several values a sample."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._firsts, self._starts = [0], [0]

    def add(self, value: NDArray[Any]) -> None:
        """Without the zeros at its end."""
        self._starts.append(self._starts[-1] + self.write(_trimmed(value)))

    def end_sample(self) -> None:
        self._firsts.append(len(self._starts) - 1)

    def close(self, name: str) -> SideFile:
        sizes = [len(self._firsts) - 1, len(self._starts) - 1]
        self.write(np.array([*self._firsts, *self._starts, *sizes], _INT).tobytes())
        return super().close(name)


def table_of(folder: str, file: SideFile) -> Table:
    """Where the values are. Raises DataError for a file that does not say so."""
    return _table(folder, file.name, file.bytes)


def whole(content: bytes, info: ColumnInfo, where: str) -> NDArray[Any]:
    """A value with the zeros that were left out, [*shape]. Raises DataError if it does not fit."""
    step = info.row_bytes // info.shape[0]
    if len(content) % step or len(content) > info.row_bytes:
        raise DataError(f"{where}: {len(content):,} bytes are no value of it; precompute the data set again")
    values = np.zeros(info.row_bytes, np.uint8)
    values[: len(content)] = np.frombuffer(content, np.uint8)
    return values.view(numpy_type(info.dtype)).reshape(info.shape)


def _trimmed(value: NDArray[Any]) -> bytes:
    """The bytes of a value up to the last entry of its first axis that is not zero."""
    rows = np.ascontiguousarray(value).reshape(len(value), -1).view(np.uint8)
    used = np.flatnonzero(rows.any(axis=1))
    return rows[: int(used[-1]) + 1 if len(used) else 0].tobytes()


@lru_cache(maxsize=64)
def _table(folder: str, name: str, size: int) -> Table:
    damaged = DataError(f"{folder}: {name}: damaged; precompute the data set again")
    if size < _LEAST:
        raise damaged
    sizes = _numbers(folder, name, [(size - 16, 16)])
    if len(sizes) != 2 or min(sizes) < 0 or 8 * (int(sum(sizes)) + 4) > size:
        raise damaged
    samples, values = (int(count) for count in sizes)
    start = size - 8 * (samples + values + 4)
    table = _numbers(folder, name, [(start, 8 * (samples + values + 2))])
    firsts, starts = table[: samples + 1], table[samples + 1 :]
    rising = all((np.diff(part) >= 0).all() for part in (firsts, starts))
    if len(starts) != values + 1 or not rising or firsts[-1] != values or starts[-1] != start:
        raise damaged
    return Table(firsts, starts)


def _numbers(folder: str, name: str, ranges: Iterable[Range]) -> NDArray[np.int64]:
    content = b"".join(read_ranges(folder, name, list(ranges)))
    return np.frombuffer(content[: len(content) // 8 * 8], _INT)

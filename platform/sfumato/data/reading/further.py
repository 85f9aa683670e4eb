"""The further columns of samples: their values from the index, and the same as arrays of a chunk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.data.format.columns import ColumnInfo
from sfumato.data.format.faults import ImageFault
from sfumato.data.format.index import WEIGHTS, ShardIndex
from sfumato.data.reading.captions import Draw
from sfumato.data.reading.chunks import objects
from sfumato.errors import DataError

Infos = Mapping[str, ColumnInfo]
Values = Mapping[str, Any]
"""Of one sample, by column: a value of the index, or the place (offset, size) of a member; null: none."""


def values_of(
    index: ShardIndex, chosen: NDArray[np.int64], infos: Infos, where: str
) -> Iterator[dict[str, Any]]:
    """The index's values for the chosen samples, in their order. Raises DataError if it lacks a column."""
    held: dict[str, list[Any]] = {}
    for name, info in infos.items():
        if info.stored not in ("index", "members"):
            continue
        if name not in index.extra:
            raise DataError(f"{where}: its index has no column {name}; pack or index the data set again")
        found = index.extra[name].take(chosen).to_pylist()
        if info.stored == "members":
            found = [place and (place["offset"], place["size"]) for place in found]
        elif info.kind == "text":
            weights = index.extra.get(name + WEIGHTS)
            factors = [None] * len(found) if weights is None else weights.take(chosen).to_pylist()
            found = list(zip(found, factors, strict=True))
        held[name] = found
    for row in range(len(chosen)):
        yield {name: column[row] for name, column in held.items()}


def check(values: Values, infos: Infos) -> None:
    """Raises ImageFault for a sample that lacks a column, or whose value does not match the manifest.

    A text may be missing: it counts as empty.
    """
    for name, info in infos.items():
        if not info.may_lack:
            continue
        value = values[name]
        if value is None:
            raise ImageFault(f"it has no {name}")
        if info.kind in ("vector", "camera") and info.stored == "index":
            if len(value) != int(np.prod(info.shape)):
                raise ImageFault(f"its {name} has {len(value)} numbers, where all have {np.prod(info.shape)}")
        elif info.kind == "label" and info.classes and not 0 <= value < len(info.classes):
            raise ImageFault(f"its {name} is {value}, out of range 0..{len(info.classes) - 1}")


def without(index: ShardIndex, name: str) -> list[str]:
    """The keys of a shard's samples that lack a column, in their order."""
    column = index.extra.get(name)
    if column is None or not column.null_count:
        return []
    found: list[str] = index.keys.filter(column.is_null()).to_pylist()
    return found


def from_index(
    name: str, info: ColumnInfo, samples: Sequence[tuple[str, Values]], draw: Draw
) -> NDArray[Any]:
    """The column of samples (key, values): numbers [n, *shape], or objects [n] of texts or lists of words."""
    values = [held[name] for _, held in samples]
    if info.kind == "text":
        return objects([draw.text(name, key, *held[name]) for key, held in samples])
    if info.kind == "tags":
        return objects(values)
    if info.kind == "label":
        return np.array(values, np.int64)
    return np.array(values, np.float32).reshape(len(values), *info.shape)


def drawn_texts(infos: Infos) -> dict[str, ColumnInfo]:
    """The columns of texts that say which values of others are read."""
    names = {info.texts for info in infos.values() if info.texts is not None}
    return {name: ColumnInfo(kind="text", dtype="str", stored="index") for name in sorted(names)}


def numbers_drawn(names: Iterable[str], key: str, values: Values, draw: Draw) -> dict[str, int]:
    """Which of a sample's texts is drawn of each column; 0 where it has none, or the set holds one each."""
    found = {}
    for name in names:
        texts, weights = values.get(name) or (None, None)
        found[name] = draw.number(name, key, len(texts or ()), weights)
    return found

"""Conditions as the columns of a table: a model's signature in MLflow, and how its input is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sfumato.core.conditions import Condition, Rows
from sfumato.errors import ConfigError
from sfumato.sampling.condition_files import ImageFiles
from sfumato.sampling.conditions import Takes, tags, texts


def column_rows(name: str, condition: Condition, column: Sequence[Any], takes: Takes) -> Rows:
    """The rows of one column: numbers of labels, texts, bytes of image files, nested lists of numbers.

    An empty text stands for a missing one. Raises ConfigError for values that do not fit or are missing.
    """
    if condition.kind in ("text", "tags"):
        values = ["" if _missing(value) else value for value in column]
        return texts(list(map(str, values))) if condition.kind == "text" else tags(values)
    for row, value in enumerate(column):
        if _missing(value):
            raise ConfigError(f"{name}: row {row} has none, but others have; give every row one")
    if condition.kind == "label":
        return takes.labels(name, [int(value) for value in column], condition)
    if condition.kind == "image":
        return ImageFiles(name, [bytes(value) for value in column])
    return takes.rows(name, np.array([np.array(_nested(value)) for value in column]))


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))


def _nested(value: Any) -> Any:
    """Converts arrays within arrays, into which tables turn nested lists, back to lists."""
    return [_nested(part) for part in value] if isinstance(value, list | tuple | np.ndarray) else value

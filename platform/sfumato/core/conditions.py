"""Conditions: the inputs that steer a model's images, from their source to sample i.

A family names the conditions that its model takes (`FamilyConfig.conditions`). A *source* holds the values of
some of them, each as `Rows`: texts that a user typed, image files, a column of a data set. `conditions_of`
is the only way from a source to `Family.sample`. Sample i gets row i of every condition, starting over after
the last row, so it depends only on i and the source.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from sfumato.core.batch import DataSpec, Tags, Texts
from sfumato.core.columns import Kind
from sfumato.errors import ConfigError

Value: TypeAlias = Tensor | Texts | Tags
"""One row per sample: `label` int64 [N]; `image` float32 [N, C, H, W] in [-1, 1]; `text` is `Texts` and
`tags` `Tags` of length N; the others are [N, *shape]."""
Conditions: TypeAlias = Mapping[str, Value]
NEGATIVE = "negative_"


@dataclass(frozen=True, slots=True)
class Condition:
    """One input that steers a model's images.

    `column` is the column of the data set that it is trained on; `shape` is that of one row, () for labels,
    texts and tags. A `required` condition must be given for every sample; labels that are not given cycle
    through all classes. `negative` means that the model also takes one to be guided away from, which the
    request holds under the name `negative_NAME`.
    """

    name: str
    column: str
    kind: Kind
    shape: tuple[int, ...] = ()
    required: bool = False
    negative: bool = False


LABEL = Condition("label", "label", "label")
"""The class of an image."""
KNOWN, MASK, SMALL = "known", "mask", "small"
"""Names of pictures by which edits recognise models made for them: the picture to inpaint and its mask, white
where it is to change; the picture to enlarge, at full size."""


@runtime_checkable
class Rows(Protocol):
    """The values of one condition, in order.

    `kind` and `shape` are those of one row; `classes` is a number above all labels, 0 for other kinds.
    """

    kind: Kind
    shape: tuple[int, ...]
    classes: int

    def __len__(self) -> int: ...
    def read(self, rows: Sequence[int]) -> Value:
        """These rows, in this order; a row may occur several times."""
        ...

    def told(self, row: int) -> Any:
        """A row as JSON: its value, or where it came from."""
        ...


Source: TypeAlias = Mapping[str, Rows]
"""Rows by the name of the condition, or by `negative_NAME`."""


class Listed:
    """Rows in memory."""

    def __init__(self, kind: Kind, values: Value) -> None:
        self.kind: Kind = kind
        self._values = values
        self.shape = tuple(values.shape[1:]) if isinstance(values, Tensor) else ()
        labels = isinstance(values, Tensor) and kind == "label" and len(values) > 0
        self.classes = int(values.max()) + 1 if labels and isinstance(values, Tensor) else 0

    def __len__(self) -> int:
        return len(self._values)

    def read(self, rows: Sequence[int]) -> Value:
        """As `Rows.read`."""
        if isinstance(self._values, Tensor):
            return self._values[torch.tensor(list(rows), dtype=torch.int64)]
        if isinstance(self._values, Texts):
            return Texts([self._values[row] for row in rows])
        return Tags([self._values[row] for row in rows])

    def told(self, row: int) -> Any:
        """The value itself."""
        value = self._values[row]
        return value.tolist() if isinstance(value, Tensor) else value


def classes_of(condition: Condition, data: DataSpec) -> tuple[str, ...]:
    """The names of a label's classes."""
    column = data.columns.get(condition.column)
    return () if column is None else column.classes


def no_class(what: str, label: object, classes: Sequence[str]) -> str:
    """The message for a label that the model does not know."""
    shown = ", ".join(classes[:12]) + (", ..." if len(classes) > 12 else "")
    return f"{what}: {label} is not a class of this model; it has 0 to {len(classes) - 1} ({shown})"


def complete(source: Source, taken: Sequence[Condition], data: DataSpec) -> Source:
    """The source, with labels that it lacks cycling through all classes.

    `taken` are the conditions that the model takes. Raises ConfigError with one line for each condition that
    the model does not take, that it needs and the source lacks, or whose rows do not fit.
    """
    by_name = {condition.name: condition for condition in taken}
    by_name |= {NEGATIVE + condition.name: condition for condition in taken if condition.negative}
    if unknown := [_unknown(name, list(by_name)) for name in source if name not in by_name]:
        raise ConfigError(*unknown)
    problems: list[str] = []
    found = dict(source)
    for condition in taken:
        classes = classes_of(condition, data)
        if condition.kind == "label" and classes and condition.name not in source:
            found[condition.name] = Listed("label", torch.arange(len(classes)))
        elif condition.required and condition.name not in source:
            problems.append(f"{condition.name}: this model needs one for every image ({_words(condition)})")
    for name, rows in found.items():
        problems += _misfits(name, rows, by_name[name], classes_of(by_name[name], data))
    if problems:
        raise ConfigError(*problems)
    return found


def conditions_of(
    source: Source, rows: Sequence[int], taken: Sequence[Condition], data: DataSpec
) -> Conditions:
    """The conditions of samples `rows`; each sample's depend only on its number and the source.

    Raises ConfigError as `complete` does.
    """
    return {
        name: values.read([row % len(values) for row in rows])
        for name, values in complete(source, taken, data).items()
    }


def told(source: Source, row: int) -> dict[str, Any]:
    """The conditions of sample `row`, as JSON."""
    return {name: values.told(row % len(values)) for name, values in source.items()}


def _unknown(name: str, known: list[str]) -> str:
    if not known:
        return f"{name}: this model takes no conditions; leave it out"
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{name}: this model takes no such condition; {hint}It takes {', '.join(known)}"


def _words(condition: Condition) -> str:
    """`an image of 3x32x32`, `a text`."""
    size = f" of {_size(condition.shape)}" if condition.shape else ""
    return f"{'tags' if condition.kind == 'tags' else _article(condition.kind)}{size}"


def _article(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) if shape else "one number"


def _misfits(name: str, rows: Rows, condition: Condition, classes: Sequence[str]) -> list[str]:
    """The reasons why the rows cannot serve this condition."""
    if rows.kind != condition.kind:
        return [f"{name}: this model takes {_words(condition)}, got {_article(rows.kind)}"]
    if len(rows) == 0:
        return [f"{name}: empty; give at least one"]
    if rows.shape != condition.shape:
        what = "images of (channels x height x width)" if condition.kind == "image" else "rows of"
        return [f"{name}: this model takes {what} {_size(condition.shape)}, got {_size(rows.shape)}"]
    if condition.kind == "label" and rows.classes > len(classes):
        return [no_class(name, rows.classes - 1, classes)]
    return []

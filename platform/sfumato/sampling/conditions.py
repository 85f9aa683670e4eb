"""From the user's values, in Python or on the command line, to the source of a model's conditions."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sfumato.core.batch import DataSpec, Tags, Texts
from sfumato.core.columns import Kind
from sfumato.core.conditions import (
    NEGATIVE,
    Condition,
    Listed,
    Rows,
    Source,
    classes_of,
    complete,
    no_class,
)
from sfumato.core.family import FamilyConfig
from sfumato.data.reading.condition_rows import rows_of_data
from sfumato.errors import ConfigError
from sfumato.sampling.condition_files import ImageFiles, array_file, array_rows, read_prompts
from sfumato.sampling.pixels import from_uint8

Labels = int | str | Iterable[int | str]
"""Classes by number or name: one, or several used in rotation."""


@dataclass(frozen=True, slots=True)
class Takes:
    """The conditions that a model takes, with the data whose classes its labels number."""

    conditions: Sequence[Condition]
    data: DataSpec
    family: str = ""

    def source(
        self,
        *,
        labels: Labels | None = None,
        prompts: str | Sequence[str] | None = None,
        negative: str | Sequence[str] | None = None,
        conditions: Mapping[str, Any] | None = None,
    ) -> Source:
        """The source of samples; see `Generator.sample` for the arguments.

        Raises ConfigError for a condition that the model does not take, or that is missing.
        """
        found = {name: self.rows(name, value) for name, value in (conditions or {}).items()}
        if labels is not None:
            if not self._of_kind("label"):
                raise ConfigError(f"labels: this {self.family} model takes none; leave them out")
            found[self.one("label", "labels").name] = self.labels("labels", labels)
        if prompts is not None:
            found[self.one("text", "prompts").name] = texts(prompts)
        if negative is not None:
            found[self.negative("negative")] = texts(negative)
        return complete(found, self.conditions, self.data)

    def one(self, kind: Kind, what: str) -> Condition:
        """The only condition of this kind. Raises ConfigError if there is none, or several."""
        found = self._of_kind(kind)
        if not found:
            raise ConfigError(f"{what}: this {self.family} model takes none; leave it out")
        if len(found) > 1:
            names = ", ".join(condition.name for condition in found)
            raise ConfigError(f"{what}: this model takes several of the kind {kind}: name one of {names}")
        return found[0]

    def negative(self, what: str) -> str:
        """The name of a model's condition for negative prompts. Raises ConfigError."""
        condition = self.one("text", what)
        if not condition.negative:
            raise ConfigError(f"{what}: this {self.family} model takes no negative prompts; leave it out")
        return NEGATIVE + condition.name

    def rows(self, name: str, value: Any) -> Rows:
        """The rows of a value: rows themselves, texts, labels, images uint8 [N, H, W, C] or float32
        [N, C, H, W] in [-1, 1], paths of files, arrays. Raises ConfigError.
        """
        if isinstance(value, Rows):
            return value
        condition = self._named(name)
        if condition.kind in ("text", "tags"):
            return texts(value) if condition.kind == "text" else tags(value)
        if condition.kind == "label":
            return self.labels(name, value, condition)
        if isinstance(value, str | Path | int | bytes):
            value = [value]
        first = value[0] if isinstance(value, list | tuple) and value else None
        if isinstance(first, str | Path):
            return self.files(condition, [str(path) for path in value])
        return ImageFiles(name, list(value)) if isinstance(first, bytes) else _in_memory(condition, value)

    def files(self, condition: Condition, places: Sequence[str]) -> Rows:
        """Images, or one array, from files."""
        if condition.kind == "image":
            return ImageFiles.at(condition.name, places)
        if len(places) > 1:
            raise ConfigError(f"{condition.name}: got {len(places)} files; put all rows into one .npy file")
        return array_file(condition, Path(places[0]))

    def labels(self, what: str, given: Labels, condition: Condition | None = None) -> Rows:
        """Labels by number or name, one or several in turn. Raises ConfigError with the existing classes."""
        classes = classes_of(condition or self.one("label", what), self.data)
        labels = [given] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
        if not labels:
            raise ConfigError(f"{what}: got an empty list; give one class or several, or leave it out")
        numbers = [classes.index(label) if label in classes else _number(label) for label in labels]
        for label, number in zip(labels, numbers, strict=True):
            if not 0 <= number < len(classes):
                raise ConfigError(no_class(what, label, classes))
        return Listed("label", torch.tensor(numbers, dtype=torch.int64))

    def _of_kind(self, kind: Kind) -> list[Condition]:
        return [condition for condition in self.conditions if condition.kind == kind]

    def _named(self, name: str) -> Condition:
        for condition in self.conditions:
            if name in (condition.name, NEGATIVE + condition.name if condition.negative else None):
                return condition
        complete({name: Listed("text", Texts([""]))}, self.conditions, self.data)  # names the known ones
        raise AssertionError("an unknown name is refused")


def texts(value: str | Sequence[str]) -> Rows:
    """One text, or several in turn."""
    return Listed("text", Texts([value] if isinstance(value, str) else value))


def tags(value: str | Sequence[str] | Sequence[Sequence[str]]) -> Rows:
    """One list of words, or several in turn; in a text, commas stand between words."""
    rows = [value] if isinstance(value, str) else list(value)
    words = [row.split(",") if isinstance(row, str) else row for row in rows]
    return Listed("tags", Tags([[word.strip() for word in row if word.strip()] for row in words]))


def _in_memory(condition: Condition, value: Any) -> Rows:
    """Images or arrays that the caller holds."""
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if condition.kind == "image" and array.dtype == np.uint8:
        return Listed("image", from_uint8(array if array.ndim == 4 else array[None]))
    return Listed(condition.kind, array_rows(condition, array))


def _number(label: Any) -> int:
    """-1 for what is no number of a class: a word, a fraction, a truth value."""
    if isinstance(label, str):
        return int(label) if label.isdecimal() else -1
    try:
        return -1 if isinstance(label, bool) else operator.index(label)
    except TypeError:
        return -1


class PreviewSettings(Protocol):
    """The part of a recipe that says what previews are drawn for."""

    @property
    def prompts(self) -> Sequence[str]: ...
    @property
    def negative(self) -> Sequence[str]: ...
    @property
    def labels(self) -> Sequence[int | str]: ...
    @property
    def data(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Asked:
    """The conditions given as options of `sfumato sample`."""

    labels: Sequence[str] = ()
    prompts: Sequence[str] = ()
    negative: Sequence[str] = ()
    prompt_file: Path | None = None
    values: Sequence[tuple[str, str]] = ()
    data: str | None = None

    @classmethod
    def of(cls, previews: PreviewSettings) -> Asked:
        """What a recipe asks previews to be drawn for."""
        labels = [str(label) for label in previews.labels]
        return cls(labels, previews.prompts, previews.negative, data=previews.data)

    def source(self, takes: Takes) -> Source:
        """The rows of everything that was given; options that name a condition replace the data set's.

        Raises ConfigError or DataError, in one line each.
        """
        found = dict(rows_of_data(self.data, takes.conditions)) if self.data else {}
        if self.prompt_file and (self.prompts or self.negative):
            raise ConfigError(
                "--prompts: give the prompts in the file or with --prompt and --negative, not both"
            )
        columns = read_prompts(self.prompt_file) if self.prompt_file else {}
        if prompts := columns.get("prompt", self.prompts):
            found[takes.one("text", "--prompts" if self.prompt_file else "--prompt").name] = texts(prompts)
        if negative := columns.get("negative", self.negative):
            found[takes.negative("--negative")] = texts(negative)
        if self.labels and "label" in columns:
            raise ConfigError("--label: the file of prompts has labels already; leave one of them out")
        if labels := columns.get("label", self.labels):
            found[takes.one("label", "--label").name] = takes.labels("--label", labels)
        for name in dict.fromkeys(name for name, _ in self.values):
            given = [value for key, value in self.values if key == name]
            found[name] = takes.rows(name, given)
        return found

    def images(self, num: int | None = None) -> int | None:
        """How many images to draw: `num`, or one for each prompt of a file if there is one.

        Raises ConfigError if `num` leaves out prompts of the file.
        """
        if not self.prompt_file:
            return num
        prompts = len(read_prompts(self.prompt_file)["prompt"])
        if num is not None and num < prompts:
            raise ConfigError(
                f"--num: got {num}, but {self.prompt_file} has {prompts} prompts; give at least {prompts}, "
                "or leave --num out"
            )
        return num or prompts


def condition_problems(model: FamilyConfig, data: DataSpec, previews: PreviewSettings) -> list[str]:
    """What the data lacks that the model needs, and previews that it cannot draw, a line each."""
    taken = model.conditions(data)
    found = [
        f"model: needs the column {condition.column!r} for its condition {condition.name!r}, and batches "
        f"have {', '.join(data.columns)}: name it in data.columns, or pack it"
        for condition in taken
        if condition.required and condition.column not in data.columns
    ]
    try:
        replace(Asked.of(previews), data=None).source(Takes(taken, data, model.family))
    except ConfigError as error:
        found += [f"train.preview_conditions: {problem}" for problem in error.problems]
    return found

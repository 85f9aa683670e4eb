"""Examples of a class among the images of a packed data set, for edits that learn from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from sfumato.core.conditions import Condition, conditions_of
from sfumato.core.config import Config
from sfumato.core.family import SampleRequest
from sfumato.core.rng import SampleRng
from sfumato.data.format.manifest import Manifest
from sfumato.data.reading.condition_rows import rows_of_data
from sfumato.editing.operations import Block
from sfumato.errors import ConfigError, DataError
from sfumato.sampling.generator import Generator

_IMAGE, _CLASS = "example image", "example class"
_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Labelled:
    """A data set and its column of classes; a class is a name, or its number."""

    folder: str
    column: str

    def problems(self, model: Generator, wanted: dict[str, str]) -> list[str]:
        """Why it has no examples for this model of these classes, each by the name of the setting that asks
        for it; one line each."""
        try:
            spec = Manifest.load(self.folder).of_its_size().spec
        except DataError as error:
            return [f"--set among: {error}"]
        labels = [name for name, column in spec.columns.items() if column.kind == "label"]
        if self.column not in labels:
            has = f"the column {labels[0]}" if labels else "no classes"
            return [f"--set column: {self.folder} has no classes in {self.column!r}; it has {has}"]
        if spec.shape != model.data.shape:
            theirs, ours = ("x".join(map(str, shape)) for shape in (spec.shape, model.data.shape))
            return [f"--set among: images of {self.folder} are {theirs} (CxHxW), the model's are {ours}"]
        names = spec.columns[self.column].classes
        shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
        return [
            f"--set {setting}: {name} is no class of {self.folder}; it has {shown}"
            for setting, name in wanted.items()
            if _number(name, names) is None
        ]

    def blocks(
        self, model: Generator, options: Config, name: str, *, most: int, others: bool = False
    ) -> Iterator[tuple[Block, int]]:
        """The first images of a class, or with `others` of all other ones, at most so many, each with its own
        conditions; and how many of a block count, since the last one is filled up.

        Raises ConfigError if there is none, or if the data lacks a condition that the model needs.
        """
        manifest = Manifest.load(self.folder).of_its_size()
        number = _number(name, manifest.spec.columns[self.column].classes)
        own = [Condition(_IMAGE, "image", "image"), Condition(_CLASS, self.column, "label")]
        source = dict(rows_of_data(self.folder, [*own, *model.conditions]))
        images, classes = source.pop(_IMAGE), source.pop(_CLASS)

        def found() -> Iterator[int]:
            for first in range(0, manifest.samples, _AT_ONCE):
                rows = range(first, min(first + _AT_ONCE, manifest.samples))
                read = classes.read(rows)
                assert isinstance(read, Tensor), "numbers of classes"
                yield from (row for row, each in zip(rows, read.tolist(), strict=True) if is_one(each))

        def is_one(each: int) -> bool:
            return (each != number) if others else (each == number)

        chosen = list(islice(found(), most))
        if not chosen:
            raise ConfigError(
                f"--set among: {self.folder} has no image {'but of' if others else 'of'} {name}"
            )
        for first in range(0, len(chosen), model.block):
            mine = chosen[first : first + model.block]
            rows = mine + [mine[0]] * (model.block - len(mine))
            pixels = images.read(rows)
            assert isinstance(pixels, Tensor), "rows of images"
            given = conditions_of(source, rows, model.conditions, model.data)
            request = SampleRequest(num=model.block, conditions=given, options=options)
            block = Block(images=pixels.to(model.device), mask=None, request=request, rng=SampleRng(0, rows))
            yield block, len(mine)


def _number(name: str, names: Sequence[str]) -> int | None:
    """The number of a class given by its name, or by its number."""
    if name in names:
        return list(names).index(name)
    return int(name) if name.isdecimal() and int(name) < len(names) else None


def mean_of(parts: Iterator[tuple[Tensor, int]]) -> Tensor:
    """The mean of the first rows of each part, [D]."""
    sums, rows = [], 0
    for each_ND, count in parts:
        counted_ND = each_ND[:count]
        sums.append(counted_ND.sum(dim=0))
        rows += len(counted_ND)
    return torch.stack(sums).sum(dim=0) / rows

"""The embedded captioned data set: pictures of one to four coloured shapes, drawn from a seed when packed.

Its captions can be checked: `data/shapes/checker.py` reads from any picture which objects it shows.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import BeforeValidator, Field, field_validator, model_validator

from sfumato.data.format.column_sources import ColumnsOption, ColumnSource, WeightedTexts, check_sources
from sfumato.data.format.columns import TEXT
from sfumato.data.format.faults import Fault
from sfumato.data.packing.resizing import Look
from sfumato.data.packing.source import I64, Opening, Record, Source, SourceConfig
from sfumato.data.shapes.contents import Contents, contents_of
from sfumato.data.shapes.phrases import captions
from sfumato.data.shapes.rendering import Pictures, render
from sfumato.data.shapes.scenes import scenes
from sfumato.data.shapes.vocabulary import (
    CATEGORIES,
    COMBINING,
    LARGEST_SIDE,
    SMALLEST_SIDE,
    Category,
    Part,
)

VERSION = 1
"""Increased when the same options give other pictures or captions."""
_AT_ONCE = 512
COLUMNS: Mapping[str, ColumnSource] = {
    TEXT: ColumnSource(kind="text", field=TEXT),
    "edge": ColumnSource(kind="image", member="edge", channels=1),
    "mask": ColumnSource(kind="image", member="mask", channels=1),
    "depth": ColumnSource(kind="image", member="depth", channels=1),
}


def _parted(value: Any) -> Any:
    """`a,b` from a command line."""
    return tuple(value.split(",")) if isinstance(value, str) else value


class ShapesSource(SourceConfig):
    """Coloured shapes with captions, edges, a segmentation mask and the depth order; nothing to download."""

    WORDS: ClassVar[tuple[str, ...]] = ("shapes",)
    TAKES_COLUMNS: ClassVar[bool] = True

    kind: Literal["shapes"] = Field("shapes", description="The embedded pictures of shapes.")
    licence: str = Field("CC0 1.0", description="Terms of use of the images, kept in the manifest.")
    images: int = Field(20_000, ge=1, le=10_000_000, description="How many.")
    size: int | None = Field(
        32,
        ge=SMALLEST_SIDE,
        le=LARGEST_SIDE,
        description="Side of the pictures; they are drawn at this size.",
    )
    seed: int = Field(0, ge=0, description="Picture i depends on the seed and on i alone.")
    part: Part = Field(
        "seen",
        description="seen: without the colours of shapes and the positions that are held out of training; "
        "held_out: each picture with one of them; both: in turn.",
    )
    categories: Annotated[tuple[Category, ...], BeforeValidator(_parted)] = Field(
        CATEGORIES,
        min_length=1,
        description="What captions ask for, in turn: some of the default, for example colours,counting.",
    )
    columns: ColumnsOption = Field(
        default_factory=lambda: dict(COLUMNS),
        description="Which of text (several captions), edge, mask and depth to pack: {} or some of the "
        "default.",
    )

    @field_validator("columns")
    @classmethod
    def _known(cls, columns: Mapping[str, ColumnSource]) -> Mapping[str, ColumnSource]:
        for name, source in check_sources(columns).items():
            if COLUMNS.get(name) != source:
                raise ValueError(
                    f"shapes have the columns {', '.join(COLUMNS)} as they are, not {name}={source}"
                )
        return columns

    @model_validator(mode="after")
    def _combining(self) -> Self:
        if self.part != "seen" and not set(self.categories) & set(COMBINING):
            raise ValueError(
                f"part={self.part} needs a category that combines: add one of {', '.join(COMBINING)}"
            )
        return self

    @property
    def name(self) -> str:
        return "shapes"

    def open(self, opening: Opening) -> Source:
        return _Shapes(self)


class _Shapes:
    """Draws pictures as they are read, some hundreds at once."""

    labels: I64 | None = None
    classes: Sequence[str] = ()
    faults: Sequence[Fault] = ()

    def __init__(self, config: ShapesSource) -> None:
        assert config.size is not None
        self._config = config
        self._row_N = np.arange(config.images)
        self.keys = [f"{row:08d}" for row in range(config.images)]
        self.description = f"shapes, seed {config.seed}, {config.part}"
        self.uniform: Look | None = Look(config.size, config.size, grey=False)
        self._drawn: _Drawn | None = None

    def only(self, rows: Sequence[int]) -> _Shapes:
        part, chosen = copy.copy(self), np.asarray(rows, np.int64)
        part._row_N, part._drawn = self._row_N[chosen], None
        part.keys = [self.keys[row] for row in rows]
        return part

    def name(self, row: int) -> str:
        return f"picture {self._row_N[row]}"

    def mark(self, row: int) -> str:
        config = self._config
        kinds = "" if config.categories == CATEGORIES else " ".join(config.categories)
        return f"{VERSION} {config.seed} {config.size} {config.part} {kinds} {self._row_N[row]}"

    def read(self, row: int) -> Record:
        """The first caption is the image's own; the others are in the column `text`."""
        first = row - row % _AT_ONCE
        if self._drawn is None or self._drawn.first != first:
            self._drawn = _Drawn(self._config, self._row_N[first : first + _AT_ONCE], first)
        return self._drawn.record(row - first, self._config.columns)


class _Drawn:
    """Consecutive pictures of a part of the set."""

    def __init__(self, config: ShapesSource, row_N: I64, first: int) -> None:
        assert config.size is not None
        drawn = scenes(config.seed, row_N, config.part, config.size, config.categories)
        self.first = first
        self._pictures: Pictures = render(drawn)
        self._texts = captions(drawn, config.seed)
        self._contents = contents_of(drawn)

    def record(self, n: int, columns: Mapping[str, ColumnSource]) -> Record:
        texts = self._texts[n]
        extra: dict[str, Any] = {name: getattr(self._pictures, name)[n] for name in columns if name != TEXT}
        if TEXT in columns:
            extra[TEXT] = WeightedTexts(texts)
        return Record(self._pictures.image[n], texts[0], _told(self._contents[n]), extra)


def _told(contents: Contents) -> dict[str, Any]:
    """The picture's contents as plain data."""
    things = [
        {"shape": each.shape, "colour": each.colour, "size": each.size, "x": each.x, "y": each.y}
        for each in contents.things
    ]
    return {"background": contents.background, "objects": things}


COMPONENT = ShapesSource

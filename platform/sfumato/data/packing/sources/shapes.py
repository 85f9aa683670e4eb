"""The embedded captioned data set: pictures of one to four coloured shapes, drawn from a seed when packed.

Its captions can be checked: `data/shapes/checker.py` reads from any picture which objects it shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from sfumato.data.format.column_sources import ColumnsOption, ColumnSource, WeightedTexts
from sfumato.data.format.columns import TEXT
from sfumato.data.packing.drawn_shapes import DrawnShapes, DrawnShapesConfig
from sfumato.data.packing.source import I64, Opening, Record, Source
from sfumato.data.shapes.contents import Contents, contents_of
from sfumato.data.shapes.phrases import captions
from sfumato.data.shapes.rendering import render
from sfumato.data.shapes.scenes import scenes
from sfumato.data.shapes.vocabulary import (
    CATEGORIES,
    COMBINING,
    Category,
    Part,
)

VERSION = 1
"""Increased when the same options give other pictures or captions."""
COLUMNS: Mapping[str, ColumnSource] = {
    TEXT: ColumnSource(kind="text", field=TEXT),
    "edge": ColumnSource(kind="image", member="edge", channels=1),
    "mask": ColumnSource(kind="image", member="mask", channels=1),
    "depth": ColumnSource(kind="image", member="depth", channels=1),
}


def _parted(value: Any) -> Any:
    """`a,b` from a command line."""
    return tuple(value.split(",")) if isinstance(value, str) else value


class ShapesSource(DrawnShapesConfig):
    """Coloured shapes with captions, edges, a segmentation mask and the depth order; nothing to download."""

    WORDS: ClassVar[tuple[str, ...]] = ("shapes",)
    SAMPLES: ClassVar[str] = "shapes"
    COLUMNS: ClassVar[Mapping[str, ColumnSource]] = COLUMNS

    kind: Literal["shapes"] = Field("shapes", description="The embedded pictures of shapes.")
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


class _Shapes(DrawnShapes[ShapesSource]):
    """The first caption is the image's own; all are in the column `text`."""

    def __init__(self, config: ShapesSource) -> None:
        super().__init__(config, f"shapes, seed {config.seed}, {config.part}")

    def name(self, row: int) -> str:
        return f"picture {self._row_N[row]}"

    def mark(self, row: int) -> str:
        config = self._config
        kinds = "" if config.categories == CATEGORIES else " ".join(config.categories)
        return f"{VERSION} {config.seed} {config.size} {config.part} {kinds} {self._row_N[row]}"

    def draw(self, row_N: I64) -> list[Record]:
        config = self._config
        assert config.size is not None
        drawn = scenes(config.seed, row_N, config.part, config.size, config.categories)
        pictures, contents = render(drawn), contents_of(drawn)
        found = []
        for n, texts in enumerate(captions(drawn, config.seed)):
            extra: dict[str, Any] = {
                name: getattr(pictures, name)[n] for name in config.columns if name != TEXT
            }
            if TEXT in config.columns:
                extra[TEXT] = WeightedTexts(texts)
            found.append(Record(pictures.image[n], texts[0], _told(contents[n]), extra))
        return found


def _told(contents: Contents) -> dict[str, Any]:
    """The picture's contents as plain data."""
    things = [
        {"shape": each.shape, "colour": each.colour, "size": each.size, "x": each.x, "y": each.y}
        for each in contents.things
    ]
    return {"background": contents.background, "objects": things}


COMPONENT = ShapesSource

"""Edits of pictures of shapes: a picture, an instruction, and the picture after it, drawn from a seed.

For models that edit by instruction, or draw what another picture shows; the checker of shapes sees whether
what was asked for was done and all else kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from sfumato.data.format.column_sources import ColumnsOption, ColumnSource
from sfumato.data.format.columns import TEXT
from sfumato.data.packing.drawn_shapes import DrawnShapes, DrawnShapesConfig
from sfumato.data.packing.source import I64, Opening, Record, Source
from sfumato.data.shapes.contents import contents_of
from sfumato.data.shapes.draws import uniforms
from sfumato.data.shapes.rendering import render
from sfumato.data.shapes.scenes import Scenes, scenes, sides
from sfumato.data.shapes.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT_PAIRS,
    SHAPES,
    Category,
)

VERSION = 1
"""Increased when the same options give other pictures or texts."""
_OF: tuple[Category, ...] = ("single_object", "colours", "two_objects")
COLUMNS: Mapping[str, ColumnSource] = {
    TEXT: ColumnSource(kind="text", field=TEXT),
    "before": ColumnSource(kind="image", member="before", channels=3),
    "reference": ColumnSource(kind="image", member="reference", channels=3),
}


class ShapeEditsSource(DrawnShapesConfig):
    """Pictures of shapes before and after an edit, with its instruction."""

    WORDS: ClassVar[tuple[str, ...]] = ("shape-edits",)
    SAMPLES: ClassVar[str] = "edits of shapes"
    COLUMNS: ClassVar[Mapping[str, ColumnSource]] = COLUMNS

    kind: Literal["shape_edits"] = Field("shape_edits", description="The embedded edits of shapes.")
    seed: int = Field(0, ge=0, description="Edit i depends on the seed and on i alone.")
    captions: Literal["instruction", "plain"] = Field(
        "instruction", description="What texts say: the instruction; or nothing of the picture, `a shape`."
    )
    columns: ColumnsOption = Field(
        default_factory=lambda: dict(COLUMNS),
        description="Which to pack of text (the instruction), before (the picture before the edit) and "
        "reference (the changed object alone, elsewhere, on another background).",
    )

    @property
    def name(self) -> str:
        return "shape-edits"

    def open(self, opening: Opening) -> Source:
        return _Edits(self)


class _Edits(DrawnShapes[ShapeEditsSource]):
    def __init__(self, config: ShapeEditsSource) -> None:
        super().__init__(config, f"edits of shapes, seed {config.seed}")

    def name(self, row: int) -> str:
        return f"edit {self._row_N[row]}"

    def mark(self, row: int) -> str:
        config = self._config
        return f"{VERSION} {config.seed} {config.size} {config.captions} {self._row_N[row]}"

    def draw(self, row_N: I64) -> list[Record]:
        return records(self._config, row_N)


def records(config: ShapeEditsSource, row_N: I64) -> list[Record]:
    """The edits of these rows."""
    assert config.size is not None
    before = scenes(config.seed, row_N, "seen", config.size, _OF)
    after, texts, object_N = edited(before, config.seed)
    if config.captions == "plain":
        texts = ["a shape"] * len(texts)
    pictures = {"before": render(before).image}
    if "reference" in config.columns:
        pictures["reference"] = render(alone(after, object_N, config.seed)).image
    images, contents = render(after).image, contents_of(after)
    found = []
    for n in range(len(row_N)):
        extra: dict[str, Any] = {name: pictures[name][n] for name in config.columns if name != TEXT}
        if TEXT in config.columns:
            extra[TEXT] = texts[n]
        things = [{"shape": t.shape, "colour": t.colour, "x": t.x, "y": t.y} for t in contents[n].things]
        told = {"background": contents[n].background, "objects": things, "changed": int(object_N[n])}
        found.append(Record(images[n], texts[n], told, extra))
    return found


def edited(before: Scenes, seed: int) -> tuple[Scenes, list[str], I64]:
    """The scenes after an edit each, its instruction, and which object it concerns (-1: the background).

    An object whose shape is there twice is left alone, and so are pairs that are held out of training.
    """
    draw_NU = uniforms(seed, "edits", before.row_N, 3)
    colours, shapes, backgrounds = tuple(COLOURS), SHAPES, tuple(BACKGROUNDS)
    colour_NK, shape_NK = before.colour_NK.copy(), before.shape_NK.copy()
    background_N, object_N = before.background_N.copy(), np.full(len(draw_NU), -1, np.int64)
    texts = []
    for n, (which, place, choice) in enumerate(draw_NU.tolist()):
        count = int(before.count_N[n])
        k = int(place * count)
        shape, colour = int(shape_NK[n, k]), int(colour_NK[n, k])
        there = shape_NK[n, :count].tolist()
        if which < 0.4 and there.count(shape) == 1:
            fitting = [c for c in range(len(colours)) if c != colour and _seen(c, shape)]
            colour_NK[n, k], object_N[n] = fitting[int(choice * len(fitting))], k
            texts.append(f"make the {shapes[shape]} {colours[colour_NK[n, k]]}")
        elif which < 0.8 and there.count(shape) == 1:
            fitting = [s for s in range(len(shapes)) if s not in there and _seen(colour, s)]
            shape_NK[n, k], object_N[n] = fitting[int(choice * len(fitting))], k
            texts.append(f"turn the {shapes[shape]} into a {shapes[shape_NK[n, k]]}")
        else:
            others = [b for b in range(len(backgrounds)) if b != background_N[n]]
            background_N[n] = others[int(choice * len(others))]
            texts.append(f"make the background {backgrounds[background_N[n]]}")
    after = replace(before, colour_NK=colour_NK, shape_NK=shape_NK, background_N=background_N)
    return after, texts, object_N


def alone(scene: Scenes, object_N: I64, seed: int) -> Scenes:
    """The objects (of -1 the first ones) alone, at another place, on another background."""
    rows = np.arange(len(object_N))
    k_N = np.maximum(object_N, 0)
    draw_NU = uniforms(seed, "references", scene.row_N, 3)
    side_N = sides(scene.size)[scene.size_NK[rows, k_N]]
    corner_NKA = scene.corner_NKA.copy()
    corner_NKA[:, 0] = (draw_NU[:, :2] * (scene.size - side_N[:, None] + 1)).astype(np.int64)

    def first(values_NK: I64) -> I64:
        found = values_NK.copy()
        found[:, 0] = values_NK[rows, k_N]
        return found

    step_N = 1 + (draw_NU[:, 2] * (len(BACKGROUNDS) - 1)).astype(np.int64)
    return replace(
        scene,
        count_N=np.ones_like(scene.count_N),
        shape_NK=first(scene.shape_NK),
        colour_NK=first(scene.colour_NK),
        size_NK=first(scene.size_NK),
        corner_NKA=corner_NKA,
        background_N=(scene.background_N + step_N) % len(BACKGROUNDS),
    )


def _seen(colour: int, shape: int) -> bool:
    return (tuple(COLOURS)[colour], SHAPES[shape]) not in HELD_OUT_PAIRS


COMPONENT = ShapeEditsSource

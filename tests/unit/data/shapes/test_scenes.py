"""Scenes depend on (seed, row) alone, keep to the vocabulary, and hold back what is held out."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from sfumato.data.shapes.contents import contents_of
from sfumato.data.shapes.scenes import scenes, sides
from sfumato.data.shapes.vocabulary import (
    BACKGROUNDS,
    CATEGORIES,
    COLOURS,
    HELD_OUT_PAIRS,
    SHAPES,
    SIZES,
    Part,
    held_out_relation,
    relation_of,
)

ROWS = np.arange(1400)


def shows_held_out(objects: list[tuple[str, str, float, float]]) -> bool:
    """By comparing every object, and every two, with the vocabulary's lists."""
    if any((colour, shape) in HELD_OUT_PAIRS for shape, colour, *_ in objects):
        return True
    return any(
        held_out_relation(a[0], relation_of(*a[2:], *b[2:]), b[0])
        for n, a in enumerate(objects)
        for b in objects[n + 1 :]
    )


def objects_of(part: Part) -> list[list[tuple[str, str, float, float]]]:
    return [
        [(thing.shape, thing.colour, thing.x, thing.y) for thing in contents.things]
        for contents in contents_of(scenes(3, ROWS, part, 32))
    ]


def test_a_scene_depends_on_its_seed_and_row_alone() -> None:
    whole, part = scenes(3, ROWS, "seen", 32), scenes(3, ROWS[[700, 5]], "seen", 32)
    for name in ("shape_NK", "colour_NK", "size_NK", "corner_NKA", "background_N", "count_N"):
        np.testing.assert_array_equal(getattr(whole, name)[[700, 5]], getattr(part, name))
    assert (scenes(4, ROWS, "seen", 32).corner_NKA != whole.corner_NKA).any()


def test_training_never_shows_what_is_held_out() -> None:
    assert not any(map(shows_held_out, objects_of("seen")))
    assert all(map(shows_held_out, objects_of("held_out")))
    both = list(map(shows_held_out, objects_of("both")))
    assert both == [False, True] * (len(ROWS) // 2)


def test_everything_else_occurs_and_categories_are_even() -> None:
    found = scenes(3, ROWS, "seen", 32)
    assert set(Counter(found.category_N).values()) == {len(ROWS) // len(CATEGORIES)}
    assert set(found.count_N.tolist()) == {1, 2, 3, 4}
    things = [thing for contents in contents_of(found) for thing in contents.things]
    assert {(t.colour, t.shape) for t in things} == {
        (colour, shape) for colour in COLOURS for shape in SHAPES
    } - HELD_OUT_PAIRS
    assert {t.size for t in things} == set(SIZES)
    assert {contents.background for contents in contents_of(found)} == set(BACKGROUNDS)


@pytest.mark.parametrize("size", [32, 64])
def test_objects_are_inside_and_those_of_one_colour_apart(size: int) -> None:
    found = scenes(1, ROWS[:400], "both", size)
    side_NK = sides(size)[found.size_NK]
    for n, count in enumerate(found.count_N):
        boxes = [
            (*found.corner_NKA[n, k], *(found.corner_NKA[n, k] + side_NK[n, k]), found.colour_NK[n, k])
            for k in range(count)
        ]
        for k, (left, top, right, bottom, colour) in enumerate(boxes):
            assert left >= 0 and top >= 0 and right <= size and bottom <= size
            for other in boxes[:k]:
                gap = max(left - other[2], other[0] - right, top - other[3], other[1] - bottom)
                assert colour != other[4] or gap >= size // 16

"""What is in one picture, by name: as a scene says, or as the checker reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from sfumato.data.shapes.scenes import CLEAR, Scenes
from sfumato.data.shapes.vocabulary import BACKGROUNDS, COLOURS, PLACES, SHAPES, SIZES, relation_of

_CORNER, _MIDDLE = 0.4, 0.08
"""How far from the edge or the middle, as shares of the side, an object clearly at a place is."""


@dataclass(frozen=True, slots=True)
class Thing:
    """An object; `x` and `y` are its middle as shares of the picture's side, y down. A shape that is none of
    the vocabulary's is empty."""

    shape: str
    colour: str
    size: str
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Contents:
    """All of a picture."""

    background: str
    things: tuple[Thing, ...]


def contents_of(scenes: Scenes) -> list[Contents]:
    """What every scene holds, farthest object first."""
    shapes, colours, sizes, backgrounds = map(tuple, (SHAPES, COLOURS, SIZES, BACKGROUNDS))
    shape_NK, colour_NK = scenes.shape_NK.tolist(), scenes.colour_NK.tolist()
    size_NK, centre_NKA = scenes.size_NK.tolist(), scenes.centre_NKA.tolist()
    found = []
    for n, count in enumerate(scenes.count_N.tolist()):
        things = tuple(
            Thing(shapes[shape], colours[colour], sizes[size], *centre)
            for shape, colour, size, centre in zip(
                shape_NK[n][:count], colour_NK[n], size_NK[n], centre_NKA[n], strict=False
            )
        )
        found.append(Contents(backgrounds[scenes.background_N[n]], things))
    return found


def clear_relation(a: Thing, b: Thing) -> str | None:
    """Where the first is, seen from the second, if that is beyond doubt."""
    across, down = abs(a.x - b.x), abs(a.y - b.y)
    if max(across, down) < CLEAR * min(across, down):
        return None
    return relation_of(a.x, a.y, b.x, b.y)


def clear_place(thing: Thing) -> str | None:
    """The part of the picture where it is, if that is beyond doubt."""
    if max(abs(thing.x - 0.5), abs(thing.y - 0.5)) <= _MIDDLE:
        return "centre"
    words = [
        next((word for word, at in ((low, where), (high, 1 - where)) if at <= _CORNER), "")
        for where, low, high in ((thing.y, "top", "bottom"), (thing.x, "left", "right"))
    ]
    return " ".join(words) if all(words) else None


def at_place(thing: Thing, place: str) -> bool:
    """Whether it is there, in the widest sense: in that quarter of the picture, or about its middle."""
    assert place in PLACES
    if place == "centre":
        return max(abs(thing.x - 0.5), abs(thing.y - 0.5)) < 0.2
    return ("top" in place) == (thing.y < 0.5) and ("left" in place) == (thing.x < 0.5)


def alike(a: Contents, b: Contents, within: float) -> bool:
    """Whether both hold the same objects at the same positions, up to a distance, in any order."""
    if a.background != b.background or len(a.things) != len(b.things):
        return False
    left = list(b.things)
    for thing in a.things:
        same = next((other for other in left if _same(thing, other, within)), None)
        if same is None:
            return False
        left.remove(same)
    return True


def _same(a: Thing, b: Thing, within: float) -> bool:
    names = (a.shape, a.colour, a.size) == (b.shape, b.colour, b.size)
    return names and max(abs(a.x - b.x), abs(a.y - b.y)) <= within


def related(things: Sequence[Thing]) -> list[tuple[Thing, str, Thing]]:
    """Every two that lie clearly, one way round."""
    return [(a, relation, b) for a, b in combinations(things, 2) if (relation := clear_relation(a, b))]

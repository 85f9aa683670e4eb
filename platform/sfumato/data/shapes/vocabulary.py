"""What pictures of shapes are made of, by name, and the combinations that are held out of training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

RGB = tuple[int, int, int]

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
COLOURS: Mapping[str, RGB] = {
    "red": (225, 30, 35),
    "orange": (255, 145, 0),
    "yellow": (250, 230, 30),
    "green": (20, 160, 50),
    "cyan": (40, 210, 230),
    "blue": (30, 70, 225),
    "purple": (130, 30, 170),
    "pink": (255, 120, 190),
}
BACKGROUNDS: Mapping[str, RGB] = {
    "white": (245, 245, 245),
    "grey": (128, 128, 128),
    "brown": (105, 70, 40),
    "black": (15, 15, 15),
}
SIZES: Mapping[str, float] = {"small": 9 / 32, "large": 13 / 32}
"""Sides of the box around a shape, as shares of the picture's side."""
MOST = 4
"""Objects in a picture, at most."""

RELATIONS = ("left of", "right of", "above", "below")
CONVERSE: Mapping[str, str] = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
}
PLACES = ("top left", "top right", "bottom left", "bottom right", "centre")

SMALLEST_SIDE, LARGEST_SIDE = 32, 256
"""Sides of pictures: below the first, shapes of the smaller size cannot be told apart."""

HELD_OUT_PAIRS = frozenset(
    {
        ("green", "circle"),
        ("purple", "square"),
        ("blue", "triangle"),
        ("red", "star"),
        ("yellow", "cross"),
        ("cyan", "heart"),
    }
)
"""Colours and shapes of which no picture of training has an object."""
HELD_OUT_RELATIONS = frozenset(
    {
        ("circle", "above", "square"),
        ("heart", "above", "cross"),
        ("triangle", "left of", "star"),
        ("square", "left of", "heart"),
    }
)
"""Positions of two shapes, of any colours, in which no picture of training has them."""

Part = Literal["seen", "held_out", "both"]
Category = Literal[
    "single_object",
    "two_objects",
    "counting",
    "colours",
    "position",
    "attribute_binding",
    "several_objects",
]
CATEGORIES: tuple[Category, ...] = (
    "single_object",
    "two_objects",
    "counting",
    "colours",
    "position",
    "attribute_binding",
    "several_objects",
)
"""Those of GenEval (Ghosh et al. 2023), and last one for three and four different objects."""
COMBINING: tuple[Category, ...] = (
    "counting",
    "colours",
    "position",
    "attribute_binding",
    "several_objects",
)
"""Those whose captions name a colour of a shape, or a position of two."""


def held_out_relation(a: str, relation: str, b: str) -> bool:
    """Whether the position of two shapes is held out, said either way."""
    return (a, relation, b) in HELD_OUT_RELATIONS or (b, CONVERSE[relation], a) in HELD_OUT_RELATIONS


def relation_of(ax: float, ay: float, bx: float, by: float) -> str:
    """Where the first is, seen from the second; positions have x to the right and y down."""
    if abs(ax - bx) >= abs(ay - by):
        return "left of" if ax < bx else "right of"
    return "above" if ay < by else "below"

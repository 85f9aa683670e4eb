"""Texts as a person would read them, and pictures that do or do not show what they say."""

from __future__ import annotations

import pytest

from sfumato.data.shapes.claims import Claim, Wanted, claim_of
from sfumato.data.shapes.contents import Contents, Thing

RED = Thing("circle", "red", "small", 0.2, 0.2)
BLUE = Thing("square", "blue", "large", 0.7, 0.3)
PAIR = Contents("white", (RED, BLUE))


@pytest.mark.parametrize(
    ("text", "claim"),
    [
        ("a circle", Claim((Wanted("circle"),))),
        ("There are two big red stars.", Claim((Wanted("star", 2, "red", "large"),))),
        ("An orange cross and three hearts", Claim((Wanted("cross", 1, "orange"), Wanted("heart", 3)))),
        ("a photo of a star to the left of a heart", Claim((Wanted("star"), Wanted("heart")), "left of")),
        (
            "red circle over blue square",
            Claim((Wanted("circle", 1, "red"), Wanted("square", 1, "blue")), "above"),
        ),
        ("a star in the center", Claim((Wanted("star"),), place="centre")),
        ("a star, a heart and a cross", Claim((Wanted("star"), Wanted("heart"), Wanted("cross")))),
        ("a star on a black background", Claim((Wanted("star"),), background="black")),
    ],
)
def test_what_a_text_says(text: str, claim: Claim) -> None:
    assert claim_of(text) == claim


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a dog",
        "a red",
        "five circles",
        "three stars and two hearts",
        "a circle above a star above a heart",
        "a teal circle",
        "a circle on a pink background",
        "a circle and a star in the top left corner",
    ],
)
def test_what_cannot_be_checked_is_not_guessed(text: str) -> None:
    assert claim_of(text) is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a circle and a square", True),
        ("a square and a circle", True),
        ("a red circle and a blue square", True),
        ("a blue circle and a red square", False),
        ("a circle left of a square", True),
        ("a square right of a circle", True),
        ("a circle right of a square", False),
        ("a circle above a square", False),
        ("a circle", False),
        ("two circles", False),
        ("a circle, a square and a star", False),
        ("a large circle and a square", False),
        ("a circle and a square on a white background", True),
        ("a circle and a square on a black background", False),
    ],
)
def test_whether_a_picture_shows_it(text: str, shown: bool) -> None:
    claim = claim_of(text)
    assert claim is not None
    assert claim.holds(PAIR) is shown


def test_categories_and_held_out_combinations() -> None:
    said = {
        "a star": ("single_object", False),
        "a green star": ("colours", False),
        "a red star": ("colours", True),
        "two stars": ("counting", False),
        "two red stars": ("counting", True),
        "a star and a heart": ("two_objects", False),
        "a pink star and a red heart": ("attribute_binding", False),
        "a pink star and a cyan heart": ("attribute_binding", True),
        "a circle above a square": ("position", True),
        "a square below a circle": ("position", True),
        "a square above a circle": ("position", False),
        "a star in the top left corner": ("position", False),
        "a star, a heart and a cross": ("several_objects", False),
    }
    found = {text: claim_of(text) for text in said}
    assert {text: (c.category, c.held_out) for text, c in found.items() if c} == said


def test_places() -> None:
    contents = Contents("grey", (RED,))
    shown = {
        place: claim_of(f"a circle in the {place}").holds(contents)  # type: ignore[union-attr]
        for place in ("top left corner", "top right corner", "bottom left corner", "centre")
    }
    assert shown == {
        "top left corner": True, "top right corner": False, "bottom left corner": False, "centre": False,
    }  # fmt: skip

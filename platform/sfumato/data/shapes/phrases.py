"""Captions of scenes: several true ones a picture, in several phrasings.

Every caption names all objects of its picture, with or without their colours, sizes and positions. The first
is of the picture's category.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sfumato.data.shapes.contents import Contents, Thing, clear_place, clear_relation, contents_of
from sfumato.data.shapes.draws import uniforms
from sfumato.data.shapes.scenes import Scenes
from sfumato.data.shapes.vocabulary import CONVERSE, HELD_OUT_PAIRS, Category

NUMBERS = ("one", "two", "three", "four")
RELATION_PHRASES = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
_OPENINGS = ("", "", "", "a picture of ", "an image of ", "a drawing of ", "there {is} ")
_TWO = ("{} and {}", "{} and {}", "{} with {}", "{} next to {}")
_DRAWS = 40
Pick = Callable[[Sequence[str]], str]


def captions(scenes: Scenes, seed: int) -> list[list[str]]:
    """The texts of every scene, different ones, the first of its category. By (seed, row) alone."""
    draw_NU = uniforms(seed, "captions", scenes.row_N, _DRAWS).tolist()
    parts = zip(contents_of(scenes), scenes.category_N, scenes.held_out_N.tolist(), draw_NU, strict=True)
    return [_of_one(contents, category, held, draws) for contents, category, held, draws in parts]


def _of_one(contents: Contents, category: Category, held_out: bool, draws: list[float]) -> list[str]:
    left = iter(draws)

    def chance() -> float:
        return next(left)

    def pick(words: Sequence[str]) -> str:
        return words[int(chance() * len(words))]

    things = list(contents.things)
    if chance() < 0.5:
        things.reverse()
    texts = _texts(things, contents.background, held_out, pick, chance)
    first = {"single_object": "plain", "two_objects": "plain", "position": "position"}.get(category, "colour")
    if category == "counting" and not held_out and chance() < 0.5:
        first = "plain"
    ordered = [texts.pop(first), *texts.values()]
    return list(dict.fromkeys(ordered))


def _texts(
    things: list[Thing], background: str, held_out: bool, pick: Pick, chance: Callable[[], float]
) -> dict[str, str]:
    """True captions by what they say."""
    single = len({(thing.shape, thing.colour) for thing in things}) == 1
    count = len(things) if single else 1

    def said(names: list[str], ending: str = "") -> str:
        return _opened(_listed(names, pick) + ending, count, pick)

    def named(colour: bool, size: bool = False) -> list[str]:
        return [_named(thing, count, colour, size) for thing in (things[:1] if single else things)]

    found = {
        "plain": said(named(colour=False)),
        "colour": said(named(colour=True)),
        "all": said(named(colour=True, size=True), f" on a {background} background"),
    }
    if len(things) == 2 and not single and (relation := clear_relation(*things)):
        a, b = things
        coloured = chance() < 0.5 or (held_out and _paired(things))
        phrase = pick(RELATION_PHRASES[relation])
        body = f"{_named(a, 1, coloured, False)} {phrase} {_named(b, 1, coloured, False)}"
        found["position"] = _opened(body, 1, pick)
        other = pick(RELATION_PHRASES[CONVERSE[relation]])
        found["converse"] = _opened(
            f"{_named(b, 1, True, False)} {other} {_named(a, 1, True, False)}", 1, pick
        )
    if len(things) == 1 and (place := clear_place(things[0])):
        where = "in the centre" if place == "centre" else f"in the {place} corner"
        found["place"] = said(named(colour=True), f" {where}")
    return found


def _paired(things: Sequence[Thing]) -> bool:
    return any((thing.colour, thing.shape) in HELD_OUT_PAIRS for thing in things)


def _named(thing: Thing, count: int, colour: bool, size: bool) -> str:
    words = [thing.size] * size + [thing.colour] * colour + [thing.shape]
    if count > 1:
        words[-1] += "es" if thing.shape.endswith("ss") else "s"
        return " ".join([NUMBERS[count - 1], *words])
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article, *words])


def _listed(names: Sequence[str], pick: Pick) -> str:
    if len(names) == 1:
        return names[0]
    if len(names) == 2:
        return pick(_TWO).format(*names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _opened(body: str, count: int, pick: Pick) -> str:
    return pick(_OPENINGS).format(**{"is": "are" if count > 1 else "is"}) + body

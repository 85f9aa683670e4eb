"""What a text about shapes demands of a picture, and whether a picture fulfils it.

The text names all objects: a picture with others beside them does not show it. This is stricter than GenEval
(Ghosh et al. 2023), which permits others except where it counts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import permutations

from sfumato.data.shapes.contents import Contents, Thing, at_place
from sfumato.data.shapes.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT_PAIRS,
    MOST,
    SHAPES,
    SIZES,
    Category,
    held_out_relation,
    relation_of,
)

_NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "1": 1, "2": 2, "3": 3, "4": 4}
_SIZES = {**{name: name for name in SIZES}, "big": "large", "little": "small"}
_COLOURS = {**{name: name for name in COLOURS}}
_SHAPES = {form: name for name in SHAPES for form in (name, f"{name}s", f"{name}es")}
_RELATIONS = {"over": "above", "under": "below", "beneath": "below"}
_OPENING = re.compile(r"^(?:an? (?:picture|image|drawing|photo) of|there (?:is|are)) ")
_BACKGROUND = re.compile(r" on an? (\w+) background$")
_PLACE = re.compile(
    r" (?:in|at) the (top left|top right|bottom left|bottom right|centre|center)(?: corner)?$"
)
_RELATION = re.compile(
    r" (?:(?:is )?(?:to the |on the )?(left of|right of)|(?:is )?(above|over|below|under|beneath)) "
)
_AND = re.compile(r",? and |, | with | next to | beside ")


@dataclass(frozen=True, slots=True)
class Wanted:
    """`count` objects of a shape; of any colour or size where none is named."""

    shape: str
    count: int = 1
    colour: str | None = None
    size: str | None = None

    def fits(self, thing: Thing) -> bool:
        """Whether an object is one of them."""
        return (
            thing.shape == self.shape
            and self.colour in (None, thing.colour)
            and self.size in (None, thing.size)
        )


@dataclass(frozen=True, slots=True)
class Claim:
    """What a text says. `relation` is where the first kind of objects is, seen from the second; `place` is
    where the only object is."""

    wanted: tuple[Wanted, ...]
    relation: str | None = None
    place: str | None = None
    background: str | None = None

    @property
    def category(self) -> Category:
        """GenEval's."""
        if self.relation or self.place:
            return "position"
        if len(self.wanted) == 1:
            (only,) = self.wanted
            return "counting" if only.count > 1 else "colours" if only.colour else "single_object"
        if len(self.wanted) > 2:
            return "several_objects"
        return "attribute_binding" if all(each.colour for each in self.wanted) else "two_objects"

    @property
    def held_out(self) -> bool:
        """Whether it names a combination that is held out of training."""
        if any((each.colour, each.shape) in HELD_OUT_PAIRS for each in self.wanted):
            return True
        return self.relation is not None and held_out_relation(
            self.wanted[0].shape, self.relation, self.wanted[1].shape
        )

    def holds(self, contents: Contents) -> bool:
        """Whether a picture with these contents shows it, and nothing else."""
        asked = [number for number, each in enumerate(self.wanted) for _ in range(each.count)]
        if len(contents.things) != len(asked) or self.background not in (None, contents.background):
            return False
        return any(
            all(self.wanted[number].fits(thing) for number, thing in zip(asked, order, strict=True))
            and self._placed(asked, order)
            for order in permutations(contents.things)
        )

    def _placed(self, asked: list[int], order: tuple[Thing, ...]) -> bool:
        if self.place is not None:
            return all(at_place(thing, self.place) for thing in order)
        if self.relation is None:
            return True
        first = [thing for number, thing in zip(asked, order, strict=True) if number == 0]
        second = [thing for number, thing in zip(asked, order, strict=True) if number == 1]
        return all(relation_of(a.x, a.y, b.x, b.y) == self.relation for a in first for b in second)


def claim_of(text: str) -> Claim | None:
    """What a text says about shapes; None if it says something else, or more than can be checked."""
    body = " ".join(text.lower().replace(".", " ").split())
    body = _OPENING.sub("", body)
    body, background = _ending(_BACKGROUND, body)
    body, place = _ending(_PLACE, body)
    if background is not None and background not in BACKGROUNDS:
        return None
    place = "centre" if place == "center" else place
    parts = _RELATION.split(body)
    relation = None
    if len(parts) == 4:
        word = parts[1] or parts[2]
        relation, names = _RELATIONS.get(word, word), [parts[0], parts[3]]
    elif len(parts) == 1:
        names = _AND.split(body)
    else:
        return None
    wanted = [_wanted(name) for name in names]
    if place is not None and len(wanted) > 1:
        return None
    found = tuple(each for each in wanted if each is not None)
    if len(found) < len(wanted) or sum(each.count for each in found) > MOST:
        return None
    return Claim(found, relation, place, background)


def _ending(pattern: re.Pattern[str], text: str) -> tuple[str, str | None]:
    found = pattern.search(text)
    return (text[: found.start()], found.group(1)) if found else (text, None)


def _wanted(name: str) -> Wanted | None:
    """The objects of `three small red circles`."""
    words = name.split()
    count = _NUMBERS.get(words[0]) if words else None
    words = words[1:] if count is not None else words
    size = _SIZES.get(words[0]) if words else None
    words = words[1:] if size is not None else words
    colour = _COLOURS.get(words[0]) if words else None
    words = words[1:] if colour is not None else words
    if len(words) != 1 or words[0] not in _SHAPES:
        return None
    return Wanted(_SHAPES[words[0]], count or 1, colour, size)

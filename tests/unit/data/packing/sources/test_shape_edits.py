"""Edits of shapes: the checker reads that what the instruction says was done, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np

from sfumato.data.packing.sources.shape_edits import ShapeEditsSource, records
from sfumato.data.shapes.checker import Checker
from sfumato.data.shapes.contents import Contents


def seen(images: list[Any]) -> list[Contents]:
    found = Checker(32).read(np.stack(images))
    assert all(each is not None for each in found)
    return [each for each in found if each is not None]


def test_an_edit_does_what_it_says_and_nothing_else() -> None:
    found = records(ShapeEditsSource(), np.arange(48))
    again = records(ShapeEditsSource(), np.arange(40, 43))
    assert np.array_equal(found[41].image, again[1].image), "an edit depends on its row alone"
    after = seen([record.image for record in found])
    before = seen([record.extra["before"] for record in found])
    reference = seen([record.extra["reference"] for record in found])
    kinds = set()
    for record, old, new, shown in zip(found, before, after, reference, strict=True):
        words = str(record.caption).split()
        assert len(old.things) == len(new.things)
        looks_old = sorted((t.shape, t.colour) for t in old.things)
        looks_new = sorted((t.shape, t.colour) for t in new.things)
        if "background" in words:
            kinds.add("background")
            assert (new.background, looks_new) == (words[-1], looks_old)
            continue
        assert new.background == old.background
        gone, come = set(looks_old) - set(looks_new), set(looks_new) - set(looks_old)
        ((shape, colour),), ((shape_new, colour_new),) = gone, come
        if words[0] == "make":
            kinds.add("colour")
            assert (shape, shape_new, colour_new) == (words[2], words[2], words[3])
        else:
            kinds.add("shape")
            assert (shape, shape_new, colour_new) == (words[2], words[-1], colour)
        assert [(t.shape, t.colour) for t in shown.things] == [(shape_new, colour_new)]
        assert shown.background != new.background
    assert kinds == {"background", "colour", "shape"}

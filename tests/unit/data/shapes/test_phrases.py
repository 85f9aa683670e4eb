"""Captions are true of their pictures, name every object, and depend on (seed, row) alone."""

from __future__ import annotations

from collections import Counter

import numpy as np

from sfumato.data.shapes.claims import claim_of
from sfumato.data.shapes.contents import contents_of
from sfumato.data.shapes.phrases import captions
from sfumato.data.shapes.scenes import scenes
from sfumato.data.shapes.vocabulary import COLOURS, RELATIONS, SHAPES


def test_every_caption_is_read_back_and_true() -> None:
    found = scenes(5, np.arange(700), "both", 32)
    texts_N = captions(found, 5)
    for n, (texts, contents) in enumerate(zip(texts_N, contents_of(found), strict=True)):
        claims = [claim_of(text) for text in texts]
        assert len(texts) >= 3 and len(set(texts)) == len(texts)
        assert all(claim is not None and claim.holds(contents) for claim in claims), texts
        first = claims[0]
        assert first is not None
        assert (first.category, first.held_out) == (found.category_N[n], found.held_out_N[n])
        if not found.held_out_N[n]:
            assert not any(claim is not None and claim.held_out for claim in claims)
    assert captions(scenes(5, np.array([77]), "both", 32), 5) == [texts_N[77]]


def test_phrasings_vary_and_use_the_whole_vocabulary() -> None:
    found = scenes(0, np.arange(1400), "seen", 32)
    words = Counter(word for texts in captions(found, 0) for text in texts for word in text.split())
    assert {*SHAPES, *COLOURS, "small", "large", "two", "three", "four", "corner", "centre"} <= set(words)
    assert {word for relation in RELATIONS for word in relation.split()} <= set(words)
    assert len({texts[0] for texts in captions(found, 0)}) > 900

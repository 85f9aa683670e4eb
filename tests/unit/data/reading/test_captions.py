"""Drawn captions: by (seed, epoch, key) alone, in the shares of their weights, with tags in new orders."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import pytest
from pydantic import ValidationError

from sfumato.data.reading.captions import CaptionSettings, Draw

TEXT = "cat, red, small, wet"


def test_tags_come_in_every_order_behind_those_that_are_kept() -> None:
    settings = CaptionSettings(shuffle_tags=True, keep_tags=1)
    found = Counter(Draw(1, epoch, settings).text("text", "k", [TEXT], None) for epoch in range(1200))
    assert set(found) == {", ".join(["cat", *order]) for order in permutations(["red", "small", "wet"])}
    assert min(found.values()) > 150
    assert Draw(1, 3, settings).text("text", "k", [TEXT], None) == Draw(1, 3, settings).text(
        "text", "k", [TEXT], None
    )


def test_tags_are_left_out_at_their_share() -> None:
    settings = CaptionSettings(drop_tags=0.25, keep_tags=1, separator=" ")
    texts = [Draw(1, 0, settings).text("text", str(key), ["a b c d"], None).split(" ") for key in range(2000)]
    assert all(text[0] == "a" for text in texts)
    assert sum(map(len, texts)) / 2000 == pytest.approx(1 + 3 * 0.75, abs=0.06)


def test_without_a_seed_captions_stay_as_they_are() -> None:
    assert Draw(None, 0, CaptionSettings(shuffle_tags=True)).text("text", "k", [TEXT], None) == TEXT
    assert Draw(1).text("text", "k", [TEXT], None) == TEXT
    assert not Draw(1).text("text", "k", None, None)


def test_shares_of_several_texts() -> None:
    found = Counter(Draw(5).number("text", str(key), 3, [1, 0, 3]) for key in range(2000))
    assert found[1] == 0
    assert found[2] / 2000 == pytest.approx(0.75, abs=0.04)


def test_settings_without_effect_are_refused() -> None:
    with pytest.raises(ValidationError, match="it changes nothing"):
        CaptionSettings(keep_tags=2)

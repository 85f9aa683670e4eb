"""Conditions by hand: which rows a sample gets, and what does not fit."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from sfumato.core.batch import DataSpec, Tags, Texts
from sfumato.core.columns import Column
from sfumato.core.conditions import LABEL, Condition, Listed, conditions_of, told
from sfumato.errors import ConfigError

DATA = DataSpec(
    1,
    4,
    4,
    ("a", "b", "c"),
    {"style": Column("label", "int64", (), ("ink", "oil")), "control": Column("image", "uint8", (1, 4, 4))},
)
TEXT = Condition("caption", "text", "text", required=True, negative=True)
STYLE = Condition("style", "style", "label")
CONTROL = Condition("control", "control", "image", (1, 4, 4))
EVERY = (LABEL, STYLE, TEXT, CONTROL)


def texts(*values: str) -> Listed:
    return Listed("text", Texts(values))


def test_each_sample_is_given_its_row_and_after_the_last_the_first() -> None:
    images = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    source = {
        "caption": texts("one", "two", "three"),
        "negative_caption": texts("bad"),
        "control": Listed("image", images),
    }
    given = conditions_of(source, [5, 0, 7], EVERY, DATA)
    assert given["caption"] == ["three", "one", "two"]
    assert given["negative_caption"] == ["bad", "bad", "bad"]
    assert given["label"].tolist() == [2, 0, 1], "all classes in turn"
    assert given["style"].tolist() == [1, 0, 1], "of this label's own classes"
    assert given["control"][:, 0, 0, 0].tolist() == [1, 0, 1]
    assert isinstance(given["caption"], Texts)


def test_any_subset_in_any_order_gives_a_sample_the_same() -> None:
    source = {"caption": texts(*"abcdefg"), "label": Listed("label", torch.tensor([2, 0]))}
    whole = conditions_of(source, range(20), EVERY, DATA)
    rows = [13, 4, 19, 4]
    some = conditions_of(source, rows, EVERY, DATA)
    assert some["caption"] == [whole["caption"][row] for row in rows]
    assert some["label"].tolist() == [whole["label"][row] for row in rows]


def test_a_model_without_conditions_is_given_none() -> None:
    assert conditions_of({}, range(3), (), DATA) == {}, "whatever classes the data has"


def test_what_a_row_is_can_be_told() -> None:
    source = {"caption": texts("x", "y"), "words": Listed("tags", Tags([["a", "b"], []]))}
    assert told(source, 3) == {"caption": "y", "words": []}
    assert told({"label": Listed("label", torch.tensor([2]))}, 3) == {"label": 2}


@pytest.mark.parametrize(
    ("source", "taken", "says"),
    [
        ({}, EVERY, ["caption: this model needs one for every image .a text."]),
        ({}, (CONTROL, Condition("tags", "tags", "tags", required=True)), ["tags: .* image \\(tags\\)"]),
        ({"captoin": texts("a")}, EVERY, ["captoin: .* no such condition; did you mean 'caption'"]),
        ({"caption": texts("a")}, (), ["caption: this model takes no conditions; leave it out"]),
        ({"negative_style": texts("a")}, (STYLE,), ["negative_style: .* no such condition"]),
        (
            {"control": Listed("image", torch.zeros(2, 3, 4, 4))},
            (CONTROL,),
            ["control: .*1x4x4, got 3x4x4"],
        ),
        ({"control": texts("a")}, (CONTROL,), ["control: this model takes an image of 1x4x4, got a text"]),
        (
            {"style": Listed("label", torch.tensor([0, 2]))},
            (STYLE,),
            ["style: 2 is not a class .* 0 to 1 .ink, oil"],
        ),
        ({"caption": texts()}, (TEXT,), ["caption: empty"]),
        (
            {"style": Listed("label", torch.tensor([9]))},
            (STYLE, TEXT),
            ["caption: this model needs", "style: 9 is not a class"],
        ),
    ],
)
def test_what_does_not_fit_is_a_line_each(source: Any, taken: Any, says: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        conditions_of(source, [0], taken, DATA)
    assert len(caught.value.problems) == len(says)
    for problem, pattern in zip(caught.value.problems, says, strict=True):
        assert re.search(pattern, problem), problem
        assert "\n" not in problem

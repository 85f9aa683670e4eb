"""What is wrong with a recipe is said in YAML's words, with what was given and what would do."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import ValidationError

from sfumato import families
from sfumato import recipe as recipes
from sfumato.core.config import Config
from sfumato.core.validation import explain, first_problem, shown
from sfumato.errors import ConfigError
from sfumato.recipe import Recipe

BASE = {"name": "a", "data": {"path": "d"}, "model": {"family": "gan"}, "train": {"images": 640}}
PYTHON = re.compile(
    r"\b(tuple|dict|dictionary|NoneType|None|str|int|bool|boolean|float|instance|True|False|parse|unparsable|"
    r"discriminator|validation|[A-Z]\w+Settings|[A-Z]\w+Config)\b|literal\["
)


def over(below: Any, above: Any) -> Any:
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return {**below, **{key: over(below.get(key), value) for key, value in above.items()}}


MISTAKES = [
    ("data.transforms", {"kind": "flip"}, ": expected a list, for example [{kind: flip}], got a mapping"),
    (
        "data.transforms",
        [{"kind": "flop"}],
        ".0: there is no kind 'flop'; did you mean 'flip'? There are flip, crop, colour",
    ),
    ("data.transforms", [{"p": 1}], ".0: needs the key kind, which selects what it is"),
    ("data.transforms", ["flip"], ".0: expected a mapping, for example {kind: flip}, got 'flip'"),
    ("data.source", "digits", ": expected a mapping, such as {kind: digits}, got 'digits'"),
    ("data.path", "", ": needs at least 1 character, got ''"),
    ("train.images", "x", ": expected a whole number, for example 8, got 'x'"),
    ("train.images", 1.5, ": expected a whole number, for example 8, got 1.5"),
    ("train.images", None, ": expected a whole number, for example 8, got null"),
    ("train.images", 0, ": must be greater than 0, got 0"),
    ("train.clip_grad_norm", "x", ": expected a number or 'auto', got 'x'"),
    ("train.clip_grad_norm", float("inf"), ": expected a finite number or 'auto', got inf"),
    ("train.compile", "perhaps", ": expected true or false, got 'perhaps'"),
    ("train.compile", None, ": expected true or false, got null"),
    ("train.precision", "fp33", ": got 'fp33', expected 'fp32' or 'bf16'; did you mean 'fp32'?"),
    ("train.precision", True, ": got true, expected 'fp32' or 'bf16'"),
    ("train.snapshots", {"sigma_rel": []}, ".sigma_rel: needs at least 1 entry, got []"),
    (
        "train.snapshots",
        {"sigma_rel": ["x"]},
        ".sigma_rel.0: expected a number, for example 0.5, got 'x'",
    ),
    ("name", 3, ": expected a text, for example '3', got 3"),
    ("seed", -1, ": must be at least 0, got -1"),
    ("train.imags", 3, ": unknown key; did you mean 'images'?"),
    (
        "registry",
        3,
        ": expected a mapping with keys such as name, enabled, description, licence, limits, got 3",
    ),
    ("evaluate.features", {"a": 1}, ": expected 'auto' or a text or a list, got a mapping"),
    ("evaluate.features", [1], ".0: expected a text, for example '1', got 1"),
    ("evaluate.actors", "many", ": expected 'auto' or a whole number, got 'many'"),
    ("evaluate.actors", -1, ": must be at least 0, got -1"),
    ("evaluate.feature_options", [1], ": expected a mapping, for example {key: value}, got [1]"),
    ("tune", {"metric": "train/x", "space": {}}, ".space: needs at least 1 entry"),
]


@pytest.mark.parametrize(("field", "value", "line"), MISTAKES, ids=str)
def test_a_recipes_mistake_is_one_line(field: str, value: Any, line: str) -> None:
    change = value
    for part in reversed(field.split(".")):
        change = {part: change}
    with pytest.raises(ConfigError) as caught:
        recipes.parse(over(BASE, change))
    assert list(caught.value.problems) == [field + line]


@pytest.mark.parametrize("family", families.names())
@pytest.mark.parametrize(
    "value", [None, True, 3, -1.5, "word", [1], {"a": 1}, [], {}, float("nan")], ids=repr
)
def test_no_value_of_any_field_is_answered_in_pythons_words(family: str, value: Any) -> None:
    """Every field of every section and family, given every kind of value."""
    whole = recipes.parse({**BASE, "model": {"family": family}})
    for place in places(whole.model_dump(mode="json")):
        content = whole.model_dump(mode="json")
        inner = content
        for part in place[:-1]:
            inner = inner[part]
        inner[place[-1]] = value
        try:
            recipes.parse(content)
        except ConfigError as error:
            for line in error.problems:
                assert not PYTHON.search(line.partition(": ")[2].replace("family vae, ", "")), line


def places(content: Any, at: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(content, dict):
        return [at]
    return [*([at] if at else []), *(p for key, inner in content.items() for p in places(inner, (*at, key)))]


def test_a_value_is_shown_as_yaml_has_it_and_not_at_length() -> None:
    assert [shown(value) for value in (None, True, 1.5, "a b")] == ["null", "true", "1.5", "'a b'"]
    assert shown([1, "a", None, {"kind": "flip", "p": [False]}]) == "[1, a, null, {kind: flip, p: [false]}]"
    assert len(shown("x" * 500)) <= 60


def test_the_first_problem_names_its_field() -> None:
    class Small(Config):
        number: int

    with pytest.raises(ValidationError) as caught:
        Small.model_validate({"number": "x"})
    assert first_problem(caught.value, Small) == "number: expected a whole number, for example 8, got 'x'"
    with pytest.raises(ValidationError) as caught:
        Small.model_validate([1])
    assert explain(caught.value, Small) == ["expected a mapping with keys such as number, got [1]"]
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate_json("{")
    assert first_problem(caught.value).startswith("not valid JSON (")

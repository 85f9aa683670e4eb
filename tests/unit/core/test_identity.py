"""What makes a run another one: fields that differ from their defaults, but none that is marked neutral."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, create_model
from repository import ROOT

from sfumato import recipe as recipes
from sfumato.core.config import Config, Neutral, NeutralBeside
from sfumato.core.identity import agrees, changed, counted, differences
from sfumato.recipe import Recipe
from sfumato.training.config import TrainSettings

OLD = json.loads((ROOT / "tests" / "data" / "runs-0.1" / "identities.json").read_text())
for _old in OLD:
    _old["recipe"]["schema"] = 1  # as a run's recipe.yaml of that version is read
BASE = {"name": "a", "data": {"path": "d"}, "model": {"family": "gan"}, "train": {"images": 640}}


def leaves(content: Any, key: str = "") -> dict[str, Any]:
    if isinstance(content, dict) and content:
        return {k: v for name, part in content.items() for k, v in leaves(part, f"{key}.{name}").items()}
    return {key: content}


@pytest.mark.parametrize("old", OLD, ids=lambda old: str(old["name"]))
def test_what_counted_in_version_0_1_counts_and_nothing_that_did_not(old: dict[str, Any]) -> None:
    now, before, every = (
        leaves(part) for part in (recipes.parse(old["recipe"]).counted(), old["identity"], old["recipe"])
    )
    stage = before.pop(".model.first_stage", None)
    if isinstance(stage, str):
        assert now.pop(".model.first_stage.digest") == stage
    elif stage is not None or ".model.first_stage" in now:
        assert now.pop(".model.first_stage") == stage
    assert {key: now.get(key, "absent") for key in before} == before
    mixes = {".data.mix"}  # whose paths never counted
    assert not (now.keys() & every.keys()) - before.keys() - mixes


@pytest.mark.parametrize("old", OLD, ids=lambda old: str(old["name"]))
def test_a_record_of_version_0_1_agrees_with_its_recipe_alone(old: dict[str, Any]) -> None:
    recipe = recipes.parse(old["recipe"])
    assert agrees(old["identity"], recipe)
    for change in ({"seed": 77}, {"train": {**old["recipe"]["train"], "batch": 4_000}}):
        assert not agrees(old["identity"], recipes.parse({**old["recipe"], **change}))
    neutral = {
        "name": "other",
        "storage": "there",
        "evaluate": {"samples": 9},
        "tracking": {"enabled": False},
    }
    assert agrees(old["identity"], recipes.parse({**old["recipe"], **neutral}))


def test_every_recipe_of_version_0_1_still_has_an_identity_of_its_own() -> None:
    digests: dict[str, set[str]] = {}
    for old in OLD:
        digests.setdefault(recipes.parse(old["recipe"]).digest(), set()).add(old["digest"])
    assert len(digests) == len({old["digest"] for old in OLD})
    assert all(len(same) == 1 for same in digests.values())


def test_a_field_that_is_added_with_a_default_renames_no_run() -> None:
    recipe = recipes.parse({**BASE, "train": {"images": 640, "batch": 64}})
    later_train = create_model(
        "LaterTrain", __base__=TrainSettings, patience=(int, 3), note=(Neutral[str], "")
    )
    later_model = create_model("LaterModel", __base__=type(recipe.model), tricks=(tuple[int, ...], (1, 2)))
    later = create_model("Later", __base__=Recipe, train=(later_train, ...), flavour=(str | None, None))

    def read(**train: Any) -> Recipe:
        model = later_model.model_validate({"family": "gan"})
        train = {"images": 640, "batch": 64, **train}
        return later.model_validate({**BASE, "model": model, "train": train})

    assert read().digest() == recipe.digest()
    assert read(note="neutral").digest() == recipe.digest()
    assert read(patience=4).digest() != recipe.digest()
    assert agrees(recipe.counted(), read(note="neutral"))
    assert not agrees(recipe.counted(), read(patience=4))
    assert agrees(read().counted(), read()) and not agrees(read().counted(), recipe), "it had a field more"


def test_a_raised_schema_makes_other_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    before = recipes.parse(BASE).digest()
    monkeypatch.setattr(recipes, "SCHEMA", recipes.SCHEMA + 1)
    assert recipes.parse(BASE).digest() != before


class Cat(Config):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(Config):
    kind: Literal["dog"] = "dog"
    lives: int = 1


class House(Config):
    pet: Cat | Dog = Field(Cat(), discriminator="kind")
    guest: Cat | Dog | None = Field(None, discriminator="kind")
    old: Cat = Cat(lives=2)
    all: tuple[Cat | Dog, ...] = ()
    colour: Neutral[str] = "red"


class Stage(Config):
    run: Annotated[str, NeutralBeside("digest")] = ""
    digest: str | None = None


def test_different_configurations_of_a_class_never_look_alike() -> None:
    houses = [
        House(),
        House(pet=Dog()),
        House(guest=Cat()),
        House(guest=Dog()),
        House(old=Cat()),
        House(all=(Cat(),)),
        House(all=(Dog(),)),
        House(all=(Cat(), Cat())),
        House(pet=Cat(lives=3)),
    ]
    found = [json.dumps(changed(house)) for house in houses]
    assert len(set(found)) == len(houses) and found[0] == "{}"
    for one in houses:
        for other in houses:
            assert agrees(counted(one), other) == (one == other), (one, other)
    assert changed(House(colour="blue")) == {} and "colour" not in counted(House())


def test_a_field_that_another_one_identifies_counts_without_it() -> None:
    assert changed(Stage(run="a")) == {"run": "a"}
    assert changed(Stage(run="a", digest="d")) == changed(Stage(run="b", digest="d")) == {"digest": "d"}


def test_differences_of_a_record_and_a_recipe_are_listed() -> None:
    recipe = recipes.parse({**BASE, "seed": 2})
    record = recipe.counted()
    assert differences(record, recipe) == []
    del record["train"]["precision"], record["seed"]  # fields that the record's version did not know
    record["gone"] = {"x": 1}
    record["data"]["mix"] = [{"weight": 2.0}]
    assert differences(record, recipe) == [
        "data.mix: [{'weight': 2.0}] there, [] here",
        "gone.x: 1 there, absent here",
        "seed: absent there, 2 here",
    ]

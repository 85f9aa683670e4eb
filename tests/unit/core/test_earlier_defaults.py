"""Defaults that have changed: a recipe says which version's it means, a record keeps its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import pytest
import yaml
from pydantic import Field

from sfumato import families
from sfumato import recipe as recipes
from sfumato.core import earlier_defaults
from sfumato.core.components import Component
from sfumato.core.config import Config
from sfumato.core.earlier_defaults import SCHEMA, Before, as_of, marks_of
from sfumato.core.identity import agrees, changed, counted, differences
from sfumato.errors import ConfigError

GAN = {"name": "a", "data": {"path": "d"}, "model": {"family": "gan"}, "train": {"images": 640}}


class Inner(Config):
    k: Annotated[int, Before(3, 4), Before(2, 3)] = Field(5)
    free: int = 1


class Outer(Config):
    inner: Inner = Inner()
    fixed: Inner = Inner(k=9)
    many: tuple[Inner, ...] = ()
    named: dict[str, Inner] = Field({})
    whole: Annotated[Inner, Before(2, Inner(free=7))] = Inner()


@pytest.fixture(autouse=True)
def third(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(earlier_defaults, "SCHEMA", max(SCHEMA, 3))


@pytest.mark.parametrize(("schema", "k"), [(1, 3), (2, 4), (3, 5)])
def test_a_field_left_out_has_the_default_of_the_schema(schema: int, k: int) -> None:
    given = Outer(many=(Inner(), Inner(k=5)), named={"a": Inner(free=2)})
    then = as_of(given, schema)
    assert (then.inner.k, then.fixed.k) == (k, 9)
    assert [part.k for part in then.many] == [k, 5], "what was given stays, also if it is a default"
    assert then.named["a"] == Inner(k=k, free=2)
    assert then.whole.free == (7 if schema == 1 else 1)
    assert as_of(then, schema) == then


def test_nothing_is_copied_if_nothing_changes() -> None:
    given = Outer(inner=Inner(k=1), whole=Inner(k=1), many=(Inner(k=2),))
    assert as_of(given, 1) is given and as_of(Outer(), 3) == Outer()


def test_a_record_without_a_field_has_its_first_default() -> None:
    """A field that a record lacks is newer than the record: its value is what versions before it did."""
    record = counted(Outer(many=(Inner(),)))
    del record["inner"]["k"], record["many"][0]["k"]
    first = Outer(inner=Inner(k=3), many=(Inner(k=3),))
    assert agrees(record, first) and differences({**record, "many": []}, Outer(inner=Inner(k=3))) == []
    assert not agrees(record, Outer(many=(Inner(),)))
    assert differences(record, Outer(many=(Inner(k=3),)))[0] == "inner.k: 3 there, 5 here"
    assert agrees(counted(Outer()), Outer()) and changed(first)["inner"] == {"k": 3}


def test_a_recipe_may_ask_for_the_defaults_of_an_earlier_schema() -> None:
    assert recipes.parse(GAN).train.clip_grad_norm == "auto"
    assert recipes.parse({**GAN, "schema": 1}).train.clip_grad_norm == 1.0
    given = {**GAN, "train": {"images": 640, "clip_grad_norm": 3.0}, "schema": 1}
    assert recipes.parse(given).train.clip_grad_norm == 3.0
    for wrong in (0, SCHEMA + 1, "1", True):
        with pytest.raises(ConfigError, match=rf"^schema: got {wrong!r}; .* knows 1 to {SCHEMA}$"):
            recipes.parse({**GAN, "schema": wrong})


def test_density_keeps_the_balls_that_a_recipe_or_record_meant() -> None:
    """5 neighbours today; until schema 2 as many as precision has. What a record leaves out, it meant."""
    assert recipes.parse(GAN).evaluate.metric_options.density_k == 5
    then = recipes.parse({**GAN, "schema": 1})
    assert then.evaluate.metric_options.density_k is None
    record = counted(then.evaluate)
    del record["metric_options"]["density_k"]
    assert agrees(record, then.evaluate) and not agrees(record, recipes.parse(GAN).evaluate)


def test_a_recipe_that_is_written_out_says_its_schema(tmp_path: Any) -> None:
    recipe = recipes.parse({**GAN, "schema": 1})
    assert yaml.safe_load(recipe.to_yaml())["schema"] == SCHEMA
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert recipes.load(tmp_path / "recipe.yaml") == recipe


def test_the_recipe_of_a_run_without_a_schema_is_of_the_first(tmp_path: Any) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(GAN))
    assert recipes.load(path).train.clip_grad_norm == "auto"
    (tmp_path / "run.json").write_text("{}")
    assert recipes.load(path).train.clip_grad_norm == 1.0


def configurations(kind: type[Config]) -> Iterator[type[Config]]:
    yield kind
    for below in kind.__subclasses__():
        yield from configurations(below)


def test_marks_are_values_of_their_fields_and_not_inside_bare_names() -> None:
    for name in families.names():
        families.config_class(name).model_json_schema()  # which imports all components
    found = 0
    for kind in configurations(Config):
        if not kind.__module__.startswith("sfumato."):
            continue
        for field, info in kind.model_fields.items():
            for mark in marks_of(info):
                found += 1
                assert 1 < mark.schema <= SCHEMA, (kind, field)
                assert not (issubclass(kind, Component) and kind.brief), (kind, field)
                kind.__pydantic_validator__.validate_assignment(kind.model_construct(), field, mark.value)
    assert found

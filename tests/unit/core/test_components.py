"""Components: found by their folder or by import path, read, written out, refused."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field, ValidationError

from sfumato import families
from sfumato import recipe as recipes
from sfumato.core.components import Component, Components
from sfumato.core.config import Config
from sfumato.core.finding import Folder, built_in_only, imported, paths_in
from sfumato.core.identity import changed
from sfumato.core.validation import explain
from sfumato.errors import ConfigError

TESTS = Path(__file__).parents[2]
RECIPES: dict[str, Any] = json.loads((TESTS / "data" / "recipes_0_1.json").read_text())
"""Recipes of version 0.1, as read and as that version wrote them out."""


class Shape(Component):
    """What the components below are."""

    size: int = Field(1, ge=1, description="Size.")


class Word(Shape):
    """A kind of which a bare name does."""

    brief = True


SHAPES = """
from __future__ import annotations
from typing import Literal
from pydantic import Field
from {base} import {kind}

class {name}({kind}):
    kind: Literal["{word}"] = Field("{word}", description="It.")
    {field}: int = Field(0, description="Its own.")

COMPONENT = {name}
"""


@pytest.fixture
def holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Config]:
    """A configuration with a field of each sort, on two folders of components that are made here."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "shape_bases", sys.modules[__name__])
    for folder, kind in (("shapes_here", "Shape"), ("words_here", "Word")):
        for module in [name for name in sys.modules if name.partition(".")[0] == folder]:
            monkeypatch.delitem(sys.modules, module)
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("")
        (tmp_path / folder / "_shared.py").write_text("1 / 0\n")
        for name, field in (("Round", "radius"), ("Square", "side")):
            text = SHAPES.format(base="shape_bases", kind=kind, name=name, word=name.lower(), field=field)
            (tmp_path / folder / f"{name.lower()}.py").write_text(text)
    shapes, words = (
        Components("shapes_here", Shape, default="round"),
        Components("words_here", Word, default="round"),
    )

    class Holder(Config):
        shape: Annotated[Shape, shapes] = Field(default_factory=lambda: shapes.make("round"))
        word: Annotated[Word, words] = Field(default_factory=lambda: words.make("round"))

    return Holder


def test_modules_are_the_names_and_are_imported_when_chosen(holder: type[Config]) -> None:
    folder: Folder[Any] = Folder("shapes_here", "COMPONENT", Shape)
    assert folder.names() == ["round", "square"]
    holder.model_validate({})
    assert "shapes_here.square" not in sys.modules
    assert type(holder.model_validate({"shape": {"kind": "square"}}).shape).__name__ == "Square"
    assert folder.reference(folder.find("square")) == "square"
    assert folder.reference(Shape) == f"{Shape.__module__}:Shape"


def test_values_are_written_as_they_are_read(holder: type[Config]) -> None:
    for given, written in (
        ({}, {"shape": {"kind": "round", "size": 1, "radius": 0}, "word": "round"}),
        ({"word": "square"}, {"shape": {"kind": "round", "size": 1, "radius": 0}, "word": "square"}),
        (
            {"shape": {"kind": "square", "side": 2}, "word": {"kind": "square", "side": 3}},
            {
                "shape": {"kind": "square", "size": 1, "side": 2},
                "word": {"kind": "square", "size": 1, "side": 3},
            },
        ),
    ):
        value = holder.model_validate(given)
        for mode in ("json", "python"):
            assert value.model_dump(mode=mode) == written
        assert holder.model_validate(json.loads(value.model_dump_json())) == value


def test_what_differs_from_the_defaults_says_of_which_component(holder: type[Config]) -> None:
    square = holder.model_validate({"shape": {"kind": "square"}, "word": "square"})
    assert square.model_dump(exclude_defaults=True) == {"shape": {"kind": "square"}, "word": "square"}
    assert changed(square) == {"shape": {"kind": "square"}, "word": "square"}
    assert changed(holder()) == {}


def test_without_a_default_the_kind_is_required(holder: type[Config]) -> None:
    class Strict(Config):
        shape: Annotated[Shape, Components("shapes_here", Shape)] | None = Field(None, description="One.")

    assert Strict().shape is None
    assert Strict.model_validate({"shape": {"kind": "square"}}).model_dump(exclude_defaults=True) == {
        "shape": {"kind": "square"}
    }
    options = Strict.model_json_schema()["properties"]["shape"]["anyOf"]
    assert all("kind" in option["required"] for option in options if option != {"type": "null"})
    for shape, line in (
        ({"size": 2}, "shape: needs the key kind, which selects what it is"),
        (3, "shape: expected a mapping, such as {kind: round}, got 3"),
    ):
        with pytest.raises(ValidationError) as caught:
            Strict.model_validate({"shape": shape})
        assert explain(caught.value, Strict) == [line]


def test_one_of_ones_own_is_named_by_its_path(holder: type[Config]) -> None:
    path = "shape_bases:Shape"
    value = holder.model_validate({"shape": {"kind": path, "size": 2}})
    assert value.shape == Shape(kind=path, size=2)
    assert value.model_dump()["shape"] == {"kind": path, "size": 2}
    assert Shape().kind == f"{Shape.__module__}:Shape"
    assert pickle.loads(pickle.dumps(Shape(size=3))) == Shape(size=3)  # noqa: S301


@pytest.mark.parametrize(
    ("content", "place", "says"),
    [
        (
            {"shape": {"kind": "rond"}},
            "shape",
            "kind: got 'rond'; did you mean 'round'? There are round, square",
        ),
        ({"shape": {"kind": "x"}}, "shape", "kind: got 'x'; there are round, square"),
        ({"shape": 3}, "shape", "expected a mapping, such as {kind: round}"),
        ({"word": 3}, "word", "expected a name such as round, or a mapping, such as {kind: round}"),
        ({"word": "rond"}, "word", "expected 'round' or 'square'"),
        ({"shape": {"kind": "square", "radius": 1}}, "shape.radius", "unknown key"),
        ({"shape": {"kind": "a:"}}, "shape", "got 'a:'; write it as 'package.module:ClassName'"),
        ({"shape": {"kind": "no_such_package:A"}}, "shape", "module 'no_such_package'"),
        ({"shape": {"kind": "shape_bases:TESTS"}}, "shape", "must subclass"),
        ({"word": "shape_bases:Shape"}, "word", "must subclass"),
    ],
)
def test_mistakes(holder: type[Config], content: dict[str, Any], place: str, says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        holder.model_validate(content)
    (item,) = caught.value.errors(include_url=False)
    assert ".".join(map(str, item["loc"])) == place
    assert says in item["msg"]


def test_the_schema_knows_every_component(holder: type[Config]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    check = jsonschema.Draft202012Validator(holder.model_json_schema())
    for fine in ({}, {"shape": {"radius": 1}}, {"shape": {"kind": "square", "side": 2}}, {"word": "square"}):
        assert check.is_valid(fine), fine
    assert check.is_valid({"shape": {"kind": "my_package.parts:Shape", "anything": 1}})
    assert check.is_valid({"word": "my_package.parts:Word"})
    for wrong in ({"shape": {"side": 1}}, {"shape": {"kind": "square", "radius": 1}}, {"word": "rond"}):
        assert not check.is_valid(wrong), wrong


def test_import_paths_from_elsewhere_are_refused() -> None:
    with built_in_only(), pytest.raises(ConfigError, match="allow that with trust=True"):
        imported("sfumato.errors:ConfigError")
    with built_in_only(False):
        assert imported("sfumato.errors:ConfigError") is ConfigError
    with built_in_only(), built_in_only(False), pytest.raises(ConfigError):
        imported("sfumato.errors:ConfigError")
    found = paths_in({"a": ["m.n:C", "s3://bucket/x:y", {"b": "p:Q"}], "c": "a b:C", "d": 3, "e": "12:30"})
    assert list(found) == ["m.n:C", "p:Q"]


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_of_version_0_1_mean_what_they_did(name: str) -> None:
    """Every value that version wrote out, in the same place; later fields may stand beside it."""
    old = RECIPES[name]
    written = recipes.parse({**old["recipe"], "schema": 1}).model_dump(mode="json")
    assert differences(old["dump"], written, name) == []
    whole = recipes.parse({**old["recipe"], **old["dump"], "schema": 1})
    assert whole.model_dump(mode="json") == written, "read back as it was written out"


def differences(old: Any, new: Any, place: str) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [line for key in old for line in differences(old[key], new.get(key), f"{place}.{key}")]
    return [] if old == new else [f"{place}: {old!r}, now {new!r}"]


def test_every_component_has_a_tiny_member() -> None:
    """Whatever lies in a folder of components is trained by the suites, as some member of its family."""
    for family in families.names():
        kind = families.config_class(family)
        members = [member.model_dump(mode="json") for member in kind.variants().values()]
        for components in folders(kind):
            missing = set(components.names()) - set(kinds(members, components))
            assert not missing, f"{family} has no member with {missing} of {components.folder.package}"


def folders(kind: type[Config]) -> list[Components[Any]]:
    """Those of a configuration's fields and of its components' fields; samplers of noise are chosen apart."""
    found, waiting = [], [kind]
    while waiting:
        for info in waiting.pop().model_fields.values():
            if isinstance(info.annotation, type) and issubclass(info.annotation, Config):
                waiting += [info.annotation] if info.annotation is not Config else []
            for mark in info.metadata:
                if isinstance(mark, Components):
                    found.append(mark)
                    waiting += mark.all().values()
    return found


def kinds(members: list[Any], components: Components[Any]) -> set[str]:
    """The names of components of this folder in plain data, at any depth."""
    names, found, waiting = set(components.names()), set[str](), list(members)
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
        elif isinstance(part, str) and part in names:
            found.add(part)
    return found


def test_strategies_and_diffusers_are_imported_when_they_are_used() -> None:
    code = (
        "import sys, sfumato.recipe, sfumato.training.capabilities\n"
        "heavy = ['sfumato.parallel.strategies.fsdp', 'torch.distributed.fsdp', 'diffusers', 'scipy']\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""The command after `--` in `sfumato submit`, on a recipe, read and checked on this machine.

Nothing of the recipe runs here: a family or component that it names by import path is imported only with
`--trust`, since that runs the module, here and on the cluster.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfumato import recipe as recipes
from sfumato.core.finding import built_in_only, paths_in
from sfumato.core.pretrained import Pretrained, Reference, references
from sfumato.errors import ConfigError
from sfumato.recipe import Recipe
from sfumato.tracking.redact import clean_uri, is_secret

COMMANDS = ("run", "train", "evaluate")
_FLAGS = {"run": ("--fresh", "--take-over"), "train": ("--fresh", "--take-over"), "evaluate": ()}
_REFERENCE = "${oc.env:"


@dataclass(frozen=True)
class Command:
    """A command on a recipe, as it will be given on the cluster."""

    name: str
    recipe_file: Path
    overrides: tuple[str, ...]
    flags: tuple[str, ...]
    recipe: Recipe
    modules: tuple[str, ...]
    """The modules of families and components that the recipe names by import path."""

    def __str__(self) -> str:
        return " ".join([self.name, str(self.recipe_file), *self.overrides, *self.flags])

    @property
    def fresh(self) -> bool:
        return "--fresh" in self.flags


def parse(words: Sequence[str], *, trust: bool) -> Command:
    """Parse the words after `--` into a command. Raises ConfigError with all problems."""
    if not words or words[0] not in COMMANDS:
        got = f"got {words[0]!r}" if words else "nothing was given"
        raise ConfigError(
            f"what to submit comes after `--` and begins with one of {', '.join(COMMANDS)} ({got}), "
            "for example: sfumato submit --address http://head:8265 -- run recipe.yaml train.images=10000"
        )
    name, rest = words[0], list(words[1:])
    flags = tuple(word for word in rest if word.startswith("-"))
    if strange := [flag for flag in flags if flag not in _FLAGS[name]]:
        known = ", ".join(_FLAGS[name]) or "none"
        raise ConfigError(f"{strange[0]}: no option of a submitted `{name}`; known: {known}")
    plain = [word for word in rest if not word.startswith("-")]
    if not plain or "=" in plain[0]:
        raise ConfigError(f"`{name}` needs a recipe file: sfumato submit ... -- {name} recipe.yaml")
    file, overrides = Path(plain[0]), tuple(plain[1:])
    check_no_secrets(dict(_pairs(overrides)), "override")
    content = recipes.read(file, overrides)
    if "stages" in content:
        raise ConfigError(
            f"{file} is a pipeline, and recipes are what is submitted: submit its stages one by one, "
            "or run the pipeline on the cluster's head"
        )
    own = _own(content)
    if own and not trust:
        path, module = next(iter(own.items()))
        raise ConfigError(
            f"{file}: {path!r} runs the module {module}, here and on the cluster: read it, then submit with "
            "--trust"
        )
    with built_in_only(not trust):
        recipe = recipes.parse(content)
        recipe.check()
    for field, reference in references(recipe.model, "model", Pretrained):
        if reference.trust and not trust:
            raise ConfigError(
                f"{file}: {field}.trust: true runs code that the model at {reference.source[1]} names: "
                "submit with --trust"
            )
    return Command(name, file, overrides, flags, recipe, tuple(dict.fromkeys(own.values())))


def relative_places(recipe: Recipe) -> list[str]:
    """The fields that name places relative to the project's folder, as field=value."""
    data = recipe.data
    places = {"storage": recipe.storage, "data.path": data.path, "train.checkpoint.uri": _uri(recipe)}
    places |= {f"data.mix.{index}.path": other.path for index, other in enumerate(data.mix)}
    for field, reference in references(recipe.model, "model", Reference):
        kind, place = reference.source
        if kind != "run" or "/" in place:
            places[f"{field}.{kind}"] = place
    source = getattr(data.source, "path", None)
    if source is not None:
        places["data.source.path"] = str(source)
    found = [f"{field}={place}" for field, place in places.items() if place and _is_relative(place)]
    if recipe.tracking.enabled and recipe.tracking.uri is None:
        found.append("tracking.uri=null (a store in the project's folder)")
    return found


def check_no_secrets(content: Mapping[str, Any], where: str) -> None:
    """Raises ConfigError where a field holds a secret: packages, logs and process lists are read by others.

    A reference to an environment variable of the cluster, ${oc.env:NAME}, is none.
    """
    for field, value in _leaves(content, ""):
        text = str(value)
        if value is None or text.startswith(_REFERENCE):
            continue
        if is_secret(field) or clean_uri(text) != text:
            raise ConfigError(
                f"{where}: {field} holds a secret, and what is submitted is stored and shown on the cluster: "
                "set an environment variable there, name it with --secret NAME, and leave the value out"
            )


def _uri(recipe: Recipe) -> str | None:
    return recipe.train.checkpoint.uri


def _is_relative(place: str) -> bool:
    return "://" not in place and not Path(place).is_absolute()


def _own(content: Mapping[str, Any]) -> dict[str, str]:
    """The import paths that a recipe names components by, each with its module."""
    data = content.get("data")
    source = data.get("source") if isinstance(data, Mapping) else None
    sections = [content.get(name) for name in ("model", "parallel", "evaluate")]
    sections.append(source.get("kind") if isinstance(source, Mapping) else None)
    return {path: path.partition(":")[0] for path in paths_in(sections)}


def _pairs(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"override {override!r} is not of the form key=value")
        yield key, value


def _leaves(content: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _leaves(value, f"{name}.{key}" if name else str(key))
    elif isinstance(content, (list, tuple)):
        for index, value in enumerate(content):
            # Of a list of secrets, the list has the telling name.
            yield from (
                (name if is_secret(name) else field, leaf)
                for field, leaf in _leaves(value, f"{name}.{index}")
            )
    else:
        yield name, content

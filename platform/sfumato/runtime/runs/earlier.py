"""Finds and takes over runs of earlier versions, although their digests, and so their names, differ.

An earlier version may have hashed recipes differently (version 0.1 hashed every field, including
defaults), or a default may have changed since (`core.earlier_defaults`). Such a run's files identify it: its
recipe.yaml holds every field, and its checkpoints record the fields that count. If that recipe is the
current one, read with the defaults of the version that began the run, the run belongs to the current recipe.
It keeps those defaults to its end.
"""

from __future__ import annotations

import glob
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sfumato import recipe as recipes
from sfumato.core import identity
from sfumato.core.batch import DataSpec
from sfumato.core.earlier_defaults import FIRST, SCHEMA, as_of
from sfumato.errors import SfumatoError
from sfumato.evaluation.config import AUTO, EvaluateSettings
from sfumato.evaluation.named import auto_features, auto_features_before
from sfumato.recipe import Recipe
from sfumato.runtime.runs.run_folder import RunFolder, run_id, stage_key
from sfumato.sampling.model_files import read_card
from sfumato.training import checkpoint as checkpoints
from sfumato.training.store import open_store

RECIPE = "recipe.yaml"


@dataclass(frozen=True)
class Begun:
    """A run, and its recipe with the defaults of the version that began it."""

    folder: RunFolder
    recipe: Recipe
    schema: int
    """That version's."""


def find(recipe: Recipe, data_digest: str) -> Begun | None:
    """The newest run of this recipe and data that an earlier version started, or None.

    If the folder is missing, checkpoints in object storage represent it. Raises OSError if the storage
    does not answer.
    """
    files = Path(recipe.storage).glob(f"{glob.escape(recipe.name)}-*/run.json")
    named = [
        folder for folder in (RunFolder(f.parent) for f in files) if _known(folder)["name"] == recipe.name
    ]
    found = [begun for folder in named if (begun := _begun(folder, recipe, data_digest)) is not None]
    return max(found, key=lambda begun: _number(begun.folder)) if found else _stored(recipe, data_digest)


def as_begun(folder: RunFolder, recipe: Recipe) -> Begun:
    """The run in this folder; `recipe` is unchanged if the run is new, or another recipe's."""
    data_digest = _known(folder)["data_digest"]
    found = None if data_digest is None else _begun(folder, recipe, data_digest)
    return found or Begun(folder, recipe, SCHEMA)


def kept_defaults(begun: Begun, recipe: Recipe) -> str | None:
    """A line about the defaults that the run keeps although `recipe` means others today; None: none."""
    parts = [
        (name, identity.counted(getattr(begun.recipe, name)), getattr(recipe, name))
        for name in ("data", "model", "train", "evaluate")
    ]
    parts.append(("model.sampling", identity.counted(begun.recipe.model.sampling), recipe.model.sampling))
    found = [f"{name}.{line}" for name, then, now in parts for line in identity.differences(then, now)]
    if not found:
        return None
    return f"{begun.folder.id} keeps the defaults it began with ({'; '.join(found)}); --fresh uses today's"


def take_over(folder: RunFolder, recipe: Recipe, manifest_digest: str) -> None:
    """Give the folder and its finished stages this version's digests, if the run is this recipe's.

    Another recipe's run, or a run of this version, stays unchanged.
    """
    known = _known(folder)
    older = known["data_digest"] is not None and known.get("schema") != SCHEMA
    if not older or not _is_of(folder, known, recipe):
        return
    _renew(
        folder,
        "train",
        stage_key(known["recipe_digest"], known["data_digest"]),
        stage_key(recipe.digest(), known["data_digest"]),
    )
    if "schema" not in known and (folder.model / "config.json").is_file():
        settings = recipes.load(folder.path / RECIPE).evaluate
        model = read_card(folder.model)[1]
        before, now = _evaluation_of_0_1(folder), settings.identity()
        _renew(
            folder,
            "evaluate",
            stage_key(model, manifest_digest, before),
            stage_key(model, manifest_digest, now),
        )
    folder.update_json(
        "run.json", recipe_digest=recipe.digest(), schema=SCHEMA, begun_schema=_schema_of(known)
    )


def measured_alike(settings: EvaluateSettings, data: DataSpec, folder: RunFolder | None) -> EvaluateSettings:
    """The settings with the features that `auto` stands for in the run: what its recipe.yaml records, what it
    stood for if a version that did not record it began the run, and for a new run (None, or a folder
    without a recipe) what it stands for now."""
    if settings.features != AUTO or settings.auto_features is not None:
        return settings
    try:
        known = yaml.safe_load((folder.path / RECIPE).read_text())["evaluate"] if folder else None
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        known = None
    if known is None:
        return settings.model_copy(update={"auto_features": auto_features(data)})
    name = known.get("auto_features") or auto_features_before(data)
    return settings.model_copy(update={"auto_features": name})


def _begun(folder: RunFolder, recipe: Recipe, data_digest: str) -> Begun | None:
    """The run, if it belongs to this data and this recipe, as meant when the run began or as it is."""
    known = _known(folder)
    if known["data_digest"] != data_digest:
        return None
    schema = _schema_of(known)
    then = as_of(recipe, schema)
    meant = next((each for each in (then, recipe) if _is_of(folder, known, each)), None)
    return None if meant is None else Begun(folder, meant, schema)


def _schema_of(known: dict[str, Any]) -> int:
    """The schema of the version that began a run; the first one did not record it."""
    return int(known.get("begun_schema", known.get("schema", FIRST)))


def _is_of(folder: RunFolder, known: dict[str, Any], recipe: Recipe) -> bool:
    """Whether the run belongs to this recipe: by digest or, for older runs, by its own recipe."""
    if known.get("schema") == SCHEMA:
        return bool(known["recipe_digest"] == recipe.digest())
    try:
        own = recipes.load(folder.path / RECIPE)
    except SfumatoError:  # a recipe that this version cannot read cannot be the given one
        return False
    return own.digest() == recipe.digest()


def _known(folder: RunFolder) -> dict[str, Any]:
    """The content of run.json; empty if the file is missing or truncated."""
    try:
        known = folder.read_json("run.json")
    except (OSError, ValueError):
        known = None
    empty = {"name": None, "recipe_digest": None, "data_digest": None}
    return {**empty, **(known if isinstance(known, dict) else {})}


def _number(folder: RunFolder) -> int:
    """2 for the first run that `--fresh` created, 3 for the next."""
    found = re.search(r"-[0-9a-f]{8}-(\d{1,3})$", folder.id)
    return int(found[1]) if found else 1


def _stored(recipe: Recipe, data_digest: str) -> Begun | None:
    """The place of a missing folder, from the name under which its checkpoints are stored."""
    uri = recipe.train.checkpoint.uri
    names = [] if uri is None else open_store(uri).folders()
    found = []
    for name in (name for name in names if name.startswith(f"{recipe.name}-")):
        for saved in checkpoints.complete(open_store(f"{str(uri).rstrip('/')}/{name}"))[:1]:
            own = run_id(recipe.name, saved.manifest.recipe_digest, data_digest)
            folder = RunFolder(Path(recipe.storage) / name)
            begun = _written(saved.manifest, folder, recipe)
            if begun and re.fullmatch(rf"{re.escape(own)}(-\d{{1,3}})?", name) and not folder.path.exists():
                found.append(begun)
    return max(found, key=lambda begun: _number(begun.folder)) if found else None


def _written(manifest: checkpoints.CheckpointManifest, folder: RunFolder, recipe: Recipe) -> Begun | None:
    """The run of a checkpoint, if it belongs to this recipe, as some version meant it."""
    for schema in range(FIRST, SCHEMA + 1):
        then = as_of(recipe, schema)
        of_today = then is not recipe and manifest.recipe_digest == then.digest()
        if not of_today and identity.agrees(manifest.recipe, then):
            return Begun(folder, then, schema)
    return None


def _renew(folder: RunFolder, stage: str, before: str, now: str) -> None:
    result = folder.stage_result(stage, before)
    if result is not None:
        folder.finish_stage(stage, now, result)


def _evaluation_of_0_1(folder: RunFolder) -> str:
    """An evaluation's identity in version 0.1: all fields that count, in the order of the recipe."""
    content = yaml.safe_load((folder.path / RECIPE).read_text())["evaluate"]
    counts = identity.counted(recipes.load(folder.path / RECIPE).evaluate)
    return json.dumps({key: value for key, value in content.items() if key in counts}, separators=(",", ":"))

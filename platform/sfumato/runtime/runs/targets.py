"""Resolves a command-line argument to a recipe, a run, a checkpoint, a model folder, or images."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sfumato import recipe as recipes
from sfumato.data.columns import spec_of
from sfumato.data.format.manifest import Manifest
from sfumato.errors import CheckpointError, ConfigError
from sfumato.parallel import Placement
from sfumato.parallel.strategies.single import Single
from sfumato.runtime.runs.run_folder import RunFolder
from sfumato.runtime.training.ema_snapshots import averages_of
from sfumato.sampling.model_folder import CARD, save_model_folder
from sfumato.tracking.config import TrackingSettings
from sfumato.tracking.runs import find_run
from sfumato.training import checkpoint as checkpoints
from sfumato.training.family_state import restored_state
from sfumato.training.loop import install, progress_at
from sfumato.training.store import LocalStore

RUNS = Path("runs")  # a recipe's default `storage`
FOLDER_TAG = "sfumato.folder"
RECIPE = "recipe.yaml"
Kind = Literal["recipe", "run", "checkpoint", "model", "images"]


@dataclass(frozen=True)
class Found:
    """A model folder, and where it came from."""

    model: Path
    about: str
    trusted: bool
    """Whether a family named by import path may be imported: true for runs of this project."""
    lasting: bool = True
    """Whether the folder persists: one built from a checkpoint is removed when the command ends."""
    run: RunFolder | None = None
    """The run that the model belongs to, if it is here."""


@contextlib.contextmanager
def model_of(run: str, *, root: Path, trust: bool = False) -> Iterator[Found]:
    """The model folder that RUN names; one built from a checkpoint exists only inside the block.

    `trust` allows a model folder, which may come from elsewhere, to name classes by import path.

    Raises ConfigError if nothing has that name, CheckpointError if there is no model yet.
    """
    path = Path(run)
    if (path / CARD).is_file():
        around = RunFolder(path.resolve().parent)
        of_run = around if around.model == path.resolve() and (around.path / "run.json").is_file() else None
        yield Found(path, f"model {path}", trusted=trust, run=of_run)
    elif (path / checkpoints.MANIFEST).is_file() and path.name.startswith("images-"):
        with tempfile.TemporaryDirectory(prefix="sfumato-") as scratch:
            of_run = folder_of_checkpoint(path, root)
            made = _from_checkpoint(path, of_run, Path(scratch))
            yield Found(made, f"checkpoint {path}", trusted=True, lasting=False, run=of_run)
    else:
        folder, about = run_folder_of(run, root=root)
        if not folder.model.is_dir():
            raise CheckpointError(
                f"run {folder.id} has no trained model yet: finish it with its recipe, or name the folder of "
                "one of its checkpoints"
            )
        yield Found(folder.model, about, trusted=True, run=folder)


def run_folder_of(run: str, *, root: Path) -> tuple[RunFolder, str]:
    """The folder of a run by path, name or MLflow id, and a line that says which one it is.

    Names are looked up in the project's own MLflow store and, for runs that a server tracks, among the
    folders in `runs/`. Raises ConfigError if neither knows it.
    """
    path = Path(run)
    if (path / "run.json").is_file():
        return RunFolder(path), f"run {path.name}"
    try:
        found = find_run(run, TrackingSettings(), root=root)
    except ConfigError:
        if (folder := _folder_here(run, root / RUNS)) is None:
            raise
        return folder, f"run {folder.id}"
    where = found.tags.get(FOLDER_TAG)
    if where is None or not Path(where).is_dir():
        raise ConfigError(f"run {run!r} was recorded in {where or 'no folder'}, which is not on this machine")
    return RunFolder(Path(where)), found.said


def _folder_here(run: str, runs: Path) -> RunFolder | None:
    """The newest folder in `runs` whose run has this name or MLflow id, or that itself has this name."""
    found = []
    for file in runs.glob("*/run.json"):
        folder = RunFolder(file.parent)
        try:
            about = folder.read_json("run.json")
        except (OSError, ValueError):  # unreadable or truncated: not the run that is sought
            continue
        if isinstance(about, dict) and run in (folder.id, about.get("name"), about.get("mlflow_run_id")):
            found.append((about.get("mlflow_started", 0.0), folder.id, folder))
    return max(found, key=lambda entry: entry[:2])[2] if found else None


def folder_of_checkpoint(path: Path, root: Path) -> RunFolder:
    """The run that a checkpoint belongs to: the one around it or, if `train.checkpoint.uri` keeps
    checkpoints elsewhere, the one of the same name in `runs/`. Raises CheckpointError if there is
    neither.
    """
    around = path.resolve().parent
    places = (around.parent, root / RUNS / around.name)
    for place in places:
        if (place / "recipe.yaml").is_file():
            return RunFolder(place)
    raise CheckpointError(
        f"{path}: no recipe.yaml in {' or '.join(map(str, places))}, so the network cannot be built"
    )


def _from_checkpoint(path: Path, folder: RunFolder, scratch: Path) -> Path:
    """Export the model that a checkpoint holds."""
    recipe = recipes.load(folder.path / "recipe.yaml")
    store = LocalStore(path.resolve().parent)
    saved = checkpoints.read_manifest(store, path.name)
    manifest = Manifest.load(recipe.data.path)
    spec = spec_of(recipe.data, manifest)
    family, strategy = recipe.model.build(spec), Single(Placement())
    averaged = averages_of(recipe, family)
    install(family, strategy, recipe.seed, averages=averaged, initial=False, bases=False)
    stored = checkpoints.load(store, saved, scratch)
    strategy.load(stored)
    model = scratch / "model"
    save_model_folder(
        model,
        recipe.model,
        spec,
        strategy.weights(family.samplers),
        name=recipe.name,
        progress=replace(
            progress_at(family, recipe.train, saved.images), state=restored_state(family, stored)
        ),
        trained_on=manifest.digest,
        provenance=recipe.marking(),
    )
    return model


@dataclass(frozen=True, slots=True)
class Target:
    """What an argument on the command line refers to, and a line that describes it."""

    kind: Kind
    place: str
    about: str
    run: RunFolder | None = None
    """The run that a `run` or `checkpoint` belongs to."""

    @property
    def recipe(self) -> Path | None:
        """The recipe that describes its evaluation, if there is one."""
        if self.kind == "recipe":
            return Path(self.place)
        return None if self.run is None else self.run.path / RECIPE


def target_of(word: str, *, root: Path) -> Target:
    """The target. Raises ConfigError if nothing has that name, CheckpointError for an unfinished run."""
    path = Path(word)
    if path.suffix in (".yaml", ".yml"):
        return Target("recipe", word, f"recipe {word}")
    if (path / CARD).is_file():
        return Target("model", word, f"model {word}")
    if path.name.startswith("images-") and (path / checkpoints.MANIFEST).is_file():
        return Target("checkpoint", str(path), f"checkpoint {path}", folder_of_checkpoint(path, root))
    if "://" in word or word == "digits" or (path.exists() and not (path / "run.json").is_file()):
        return Target("images", word, f"images {word}")
    folder, about = run_folder_of(word, root=root)
    return Target("run", word, about, folder)

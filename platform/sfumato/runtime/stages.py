"""The stages of a run: pack, train, evaluate, register. A finished stage is skipped on the next call.

Each stage is keyed by what goes into it, so that a stage whose inputs have changed runs again and one
whose have not does not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sfumato.data import pack as packing
from sfumato.data import pools
from sfumato.data.layout import TRAIN
from sfumato.data.manifest import Manifest, verify
from sfumato.data.storage import above, below
from sfumato.errors import CheckpointError, ConfigError, DataError
from sfumato.recipe import Recipe
from sfumato.runtime import first_stage, ray_cluster, sizes
from sfumato.runtime.child import Child
from sfumato.runtime.display import Display
from sfumato.runtime.run_folder import RunFolder
from sfumato.sampling.generator import Generator
from sfumato.sampling.output import write_samples
from sfumato.tracking.champion import COMPARABLE
from sfumato.tracking.model import register_model
from sfumato.tracking.run import Tracker
from sfumato.tracking.start import DatasetInfo

GRID_SAMPLES = 100


@dataclass(frozen=True)
class Session:
    """One call of the command line on one recipe: its run, and how it is shown and tracked."""

    recipe: Recipe
    manifest: Manifest
    folder: RunFolder
    tracker: Tracker
    display: Display
    root: Path
    """The project's folder: where the embedded MLflow store is."""


@contextlib.contextmanager
def session(
    recipe: Recipe,
    display: Display,
    *,
    root: Path,
    fresh: bool = False,
    at: Path | None = None,
    child: Child | None = None,
) -> Iterator[Session]:
    """Data packed and verified, recipe checked against it, the run's folder made and its MLflow run open.

    `at` is the folder of a run to go on with; without it the recipe and its data say which one it is. A
    `child` has a place of its own.
    Raises ConfigError with everything that makes the run impossible, before any expensive work.
    """
    recipe, manifest = prepared(recipe, display, root=root)
    content = pools.content_digest(recipe.data, manifest)
    given = child.folder if child else RunFolder(at) if at else None
    folder = given or RunFolder.of(recipe, content, fresh=fresh)
    folder.create(recipe, content)
    for warning in ray_cluster.warnings(recipe.parallel):
        display.note(warning)
    with _tracked(recipe, manifest, folder, root, child) as tracker:
        yield Session(recipe, manifest, folder, tracker, display, root)


def prepared(recipe: Recipe, display: Display, *, root: Path) -> tuple[Recipe, Manifest]:
    """The recipe with all paths absolute, checked against its data, which is packed and verified.

    Raises ConfigError with everything that makes the run impossible.
    """
    recipe.check()
    recipe = first_stage.resolved(absolute(recipe, root), root)
    manifest = _packed(recipe, display)
    recipe.check(manifest.spec, manifest.samples)
    first_stage.check_data(recipe, manifest)
    sizes.check(recipe, manifest, pools.check(recipe.data, manifest))
    return recipe, manifest


@contextlib.contextmanager
def _tracked(
    recipe: Recipe, manifest: Manifest, folder: RunFolder, root: Path, child: Child | None
) -> Iterator[Tracker]:
    """The run in MLflow: made by the first call, opened again by later ones."""
    # What sets the recipe apart from the defaults: MLflow prints all parameters above every picture of its
    # image grid. The artifact recipe.yaml has every field.
    params = recipe.model_dump(
        mode="json",
        exclude_defaults=True,
        exclude={
            "name": True,
            "storage": True,
            "tracking": True,
            "tune": True,
            "data": {"path", "source", "read_tasks"},
        },
    )
    params = {name: value for name, value in params.items() if value != {}}  # a path was all that it said
    known = folder.read_json("run.json") or {}
    tracker = Tracker.start(
        recipe.tracking,
        root=root,
        folder=folder.path,
        run_name=recipe.name,
        run_id=known.get("mlflow_run_id"),
        experiment_id=known.get("mlflow_experiment_id"),
        started=known.get("mlflow_started"),
        params=params,
        tags={
            "sfumato.folder": str(folder.path),
            "sfumato.family": recipe.model.family,
            "sfumato.data": manifest.name,
            "sfumato.strategy": recipe.parallel.strategy,
            **(child.tags if child else {}),
        },
        dataset=DatasetInfo(
            name=manifest.name,
            digest=manifest.digest,
            source=recipe.data.path,
            spec={
                "samples": manifest.samples,
                "image": manifest.image.model_dump(),
                "classes": len(manifest.classes),
            },
        ),
        recipe_yaml=recipe.to_yaml(),
        parent=child.parent if child else None,
    )
    folder.update_json(
        "run.json",
        mlflow_run_id=tracker.run_id,
        mlflow_experiment_id=tracker.experiment_id,
        mlflow_started=tracker.handle.started,
    )
    with tracker:
        yield tracker


def train(session: Session, watch: Callable[[Any], None] | None = None) -> dict[str, Any]:
    """Train to the end, or tell what an earlier call did; its summary. `watch`: see `ray_train.fit`."""
    from sfumato.runtime import ray_train

    recipe, folder, display = session.recipe, session.folder, session.display
    key = _key(recipe.digest(), pools.content_digest(recipe.data, session.manifest))
    done = folder.stage_result("train", key)
    ended = done is not None and (
        done["images"] >= recipe.train.images or recipe.evaluate.early_stop is not None
    )
    if done is not None and ended and folder.model.is_dir():
        display.skipped("train", f"{done['images']:,} images, done before (--fresh trains anew)")
        return done
    display.stage("train")
    session.tracker.sample_system()
    try:
        summary = ray_train.fit(recipe, folder, session.tracker.handle, display, watch=watch)
    finally:
        session.tracker.send_left()
    folder.finish_stage("train", key, summary)
    display.done(f"{summary['images']:,} images, {summary['images_per_second']:,.0f} images/s")
    return summary


def evaluate(session: Session) -> dict[str, Any]:
    """Generate, measure, draw the sample grid. Metrics by name and how long it took."""
    from sfumato.evaluation.stage import evaluate as run_stage
    from sfumato.runtime.evaluation import CACHE, comparable, figures_of, result_of

    recipe, folder, display = session.recipe, session.folder, session.display
    if not folder.model.is_dir():
        raise CheckpointError(
            f"run {folder.id} has no trained model yet: train it with `sfumato train`, or name one of the "
            f"checkpoints in {folder.checkpoints}"
        )
    generator = Generator.load(folder.model, trust=True)  # its family is the recipe's
    settings = recipe.evaluate
    draws = generator.config.samples(generator.data)
    grid = folder.path / "samples" / "grid.png"
    key = _key(generator.digest, session.manifest.digest, settings.identity())
    done = folder.stage_result("evaluate", key)
    if done is not None and (grid.is_file() or not draws):
        display.skipped("evaluate", f"{done['samples']:,} {done['kind']}, done before")
        return done
    display.stage("evaluate")
    if not draws:
        display.note(f"family {recipe.model.family} draws no images of its own: its reconstructions count")
    report = run_stage(
        settings,
        model_folder=folder.model,
        data_folder=recipe.data.path,
        out=folder.path / "evaluation",
        cache=Path(recipe.storage) / CACHE,
        on_error=recipe.data.on_error,
        trust=True,
        progress=display.update,
    )
    torch.set_num_threads(ray_cluster.cores())
    if draws:
        num = GRID_SAMPLES - GRID_SAMPLES % max(1, min(GRID_SAMPLES, generator.data.num_classes))
        options = settings.sampling
        write_samples(grid.parent, generator, num, seed=settings.seed, options=options, overwrite=True)
    session.tracker.metrics(figures_of(report), step=generator.images)
    session.tracker.tags({**report.tags(), COMPARABLE: comparable(report)})
    for picture in (folder.path / "evaluation" / "report.json", *_pictures(folder)):
        session.tracker.artifact(picture, "evaluation")
    result = result_of(report, folder.path / "evaluation")
    folder.finish_stage("evaluate", key, result)
    display.done(f"{report.samples:,} {report.kind}")
    return result


def _pictures(folder: RunFolder) -> list[Path]:
    places = ("samples/grid.png", "evaluation/preview.png", "evaluation/neighbours.png")
    return [folder.path / place for place in places if (folder.path / place).is_file()]


def register(session: Session) -> dict[str, Any]:
    """Log the model to MLflow and register a version of it."""
    recipe, folder, display = session.recipe, session.folder, session.display
    if not recipe.registry.enabled:
        return {}
    name = recipe.registry.name or recipe.name
    key = _key(Generator.load(folder.model, trust=True).digest, name)
    done = folder.stage_result("register", key)
    if done is not None:
        display.skipped("register", f"{done['name']} version {done['version']}, done before")
        return done
    display.stage("register")
    version = register_model(session.tracker.handle, folder.model, name)
    result = {"name": name, "version": version}
    folder.finish_stage("register", key, result)
    display.done(f"{name} version {version}")
    return result


def run(session: Session) -> dict[str, Any]:
    """All stages on one cluster; the results by stage."""
    with cluster_to_train(session):
        trained = train(session)
        evaluated = evaluate(session)
    return {"train": trained, "evaluate": evaluated, "register": register(session)}


@contextlib.contextmanager
def cluster_to_train(session: Session) -> Iterator[None]:
    """A cluster that holds the recipe's workers and their read tasks, and later its evaluation."""
    recipe = session.recipe
    workers = recipe.parallel.least_workers
    to_train = (ray_cluster.cpus_to_train(recipe, count) for count in (recipe.parallel.workers, workers))
    cpus, least = (max(count, ray_cluster.cpus_to_evaluate(recipe)) for count in to_train)
    gpus = workers * recipe.parallel.gpus_per_worker
    if recipe.evaluate.every is not None:
        gpus += recipe.evaluate.actors_during * recipe.evaluate.gpus_per_actor
    with ray_cluster.cluster(cpus, session.folder.logs, least=least, gpus=gpus):
        yield


@contextlib.contextmanager
def cluster_to_evaluate(session: Session) -> Iterator[None]:
    """A cluster that holds the recipe's evaluation."""
    with ray_cluster.cluster(ray_cluster.cpus_to_evaluate(session.recipe), session.folder.logs):
        yield


def absolute(recipe: Recipe, root: Path) -> Recipe:
    """Paths as workers on other nodes and in other folders must see them."""

    def absolute(path: str) -> str:
        return path if "://" in path else str((root / path).resolve())

    mix = tuple(other.model_copy(update={"path": absolute(other.path)}) for other in recipe.data.mix)
    data = recipe.data.model_copy(update={"path": absolute(recipe.data.path), "mix": mix})
    evaluate, held_out = recipe.evaluate, recipe.evaluate.held_out
    if held_out is not None:
        evaluate = evaluate.model_copy(update={"held_out": absolute(held_out)})
    changes = {"data": data, "storage": absolute(recipe.storage), "evaluate": evaluate}
    return recipe.model_copy(update=changes)


def _packed(recipe: Recipe, display: Display) -> Manifest:
    """The data's manifest, verified; packed first where the recipe says from what."""
    data = recipe.data
    if Manifest.exists(data.path):
        return verify(data.path, data.verify)
    if data.source is None:
        raise DataError(
            f"data.path={data.path!r} has no manifest.json; pack images there with "
            f"`sfumato pack SOURCE {data.path}` or say in data.source what to pack"
        )
    parent, name = above(data.path)
    if data.source.val and name != TRAIN:
        raise ConfigError(
            f"data.source.val={data.source.val} splits into folders train and val: let data.path be that of "
            f"train, for example {below(data.path, TRAIN)}"
        )
    display.stage("pack")
    report = packing.pack(
        data.source,
        parent if data.source.val else data.path,
        on_error=data.on_error,
        max_errors=data.max_errors,
        max_pixels=data.max_pixels,
        progress=display.update,
    )
    for fault in report.skipped:
        display.note(f"skipped {fault}")
    display.done(f"{report.manifest.samples:,} images in {data.path}")
    return report.manifest


def _key(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

"""A session on one recipe: data packed and verified, run folder created, MLflow run open."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sfumato.core.conditions import LABEL
from sfumato.data.columns import spec_of
from sfumato.data.format.faults import IN_RECIPES
from sfumato.data.format.manifest import Manifest, verify
from sfumato.data.order import pools
from sfumato.data.packing import pack as packing
from sfumato.data.packing.layout import TRAIN
from sfumato.data.reading import lacking
from sfumato.data.storage.filesystems import above, below
from sfumato.errors import ConfigError, DataError
from sfumato.evaluation.metrics import likelihood
from sfumato.evaluation.references.reference import PackedReference
from sfumato.recipe import Recipe
from sfumato.runtime.cluster import ray_cluster
from sfumato.runtime.runs import earlier, first_stage, from_data, memory, moments, pretrained, sizes
from sfumato.runtime.runs.child import Child
from sfumato.runtime.runs.display import Display
from sfumato.runtime.runs.run_folder import RECORD, RunFolder
from sfumato.tracking.run import Tracker
from sfumato.tracking.start import DatasetInfo
from sfumato.training.store import open_store


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
    take_over: bool = False
    """Whether to work on the run even while another process does."""


@contextlib.contextmanager
def open_session(
    recipe: Recipe,
    display: Display,
    *,
    root: Path,
    fresh: bool = False,
    at: Path | None = None,
    child: Child | None = None,
    keep_recipe: bool = False,
    new_record: bool = False,
    take_over: bool = False,
) -> Iterator[Session]:
    """Pack and verify the data, check the recipe against it, create the run's folder and open its MLflow run.

    `at` is the folder of a run to resume; without it, the recipe and its data determine the run. A
    `child` has its own place. `keep_recipe`: see `RunFolder.create`. `new_record` creates a new MLflow
    record, for a run whose record may be missing. `take_over`: see `live.working`. Raises ConfigError with
    everything that makes the run impossible, before any expensive work.
    """
    recipe, manifest = _with_data(recipe, display, root)
    content = pools.content_digest(recipe.data, manifest)
    given = child.folder if child else RunFolder(at) if at else None
    begun = earlier.as_begun(given, recipe) if given else _begun(recipe, content, fresh=fresh)
    if (note := earlier.kept_defaults(begun, recipe)) is not None:
        display.note(note)
    folder, recipe = begun.folder, begun.recipe
    recipe = _measured_alike(recipe, manifest, folder)
    _check(recipe, manifest)
    earlier.take_over(folder, recipe, manifest.digest)
    folder.create(recipe, content, keep_recipe=keep_recipe, schema=begun.schema)
    moments.mark("data packed and checked", folder)
    if new_record:
        folder.forget_record()
    for warning in ray_cluster.warnings(recipe.parallel):
        display.note(warning)
    with _tracked(recipe, manifest, folder, root, child) as tracker:
        moments.mark("MLflow's run open", folder)
        yield Session(recipe, manifest, folder, tracker, display, root, take_over)


def prepared(recipe: Recipe, display: Display, *, root: Path) -> tuple[Recipe, Manifest]:
    """The recipe with all paths absolute, checked against its data, which is packed and verified.

    Raises ConfigError with everything that makes the run impossible.
    """
    recipe, manifest = _with_data(recipe, display, root)
    recipe = _measured_alike(recipe, manifest, None)
    _check(recipe, manifest)
    return recipe, manifest


def _with_data(recipe: Recipe, display: Display, root: Path) -> tuple[Recipe, Manifest]:
    recipe.check()
    recipe = pretrained.resolved(absolute(recipe, root), root)
    manifest = packed(recipe, display)
    return from_data.learnt(recipe, manifest, display.note), manifest


def _measured_alike(recipe: Recipe, manifest: Manifest, folder: RunFolder | None) -> Recipe:
    """With the features that `auto` stands for in this run."""
    spec = spec_of(recipe.data, manifest)
    settings = earlier.measured_alike(recipe.evaluate, spec, folder)
    return recipe.model_copy(update={"evaluate": settings})


def _check(recipe: Recipe, manifest: Manifest) -> None:
    recipe.check(spec_of(recipe.data, manifest), manifest.samples)
    lacking.check(recipe.data, manifest)
    first_stage.check_data(recipe, manifest)
    sizes.check(recipe, manifest, pools.check(recipe.data, manifest))
    _check_likelihood(recipe)
    memory.check(recipe, spec_of(recipe.data, manifest))


def _check_likelihood(recipe: Recipe) -> None:
    """Raises ConfigError or DataError, before training, for what cannot be images to measure bits/dim on."""
    place = recipe.evaluate.likelihood_on
    if place is None:
        return
    reference = PackedReference(recipe.data.path, recipe.data.on_error)
    images = likelihood.images_at(place, reference)
    if reference.whole_digest in likelihood.digests(images):
        raise ConfigError(likelihood.trained_on(place))
    if LABEL in recipe.model.conditions(reference.spec):
        likelihood.check_classes(images, reference.spec)


@contextlib.contextmanager
def _tracked(
    recipe: Recipe, manifest: Manifest, folder: RunFolder, root: Path, child: Child | None
) -> Iterator[Tracker]:
    """The run in MLflow: created by the first call, reopened by later ones."""
    # Only values that differ from the defaults: MLflow prints all parameters above every picture of its
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
            "evaluate": {"auto_features"},
        },
    )
    params = {name: value for name, value in params.items() if value != {}}  # its whole message was a path
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
        recipe_yaml=(folder.path / "recipe.yaml").read_text(),
        parent=child.parent if child else None,
    )
    if recipe.tracking.enabled:
        record = (tracker.run_id, tracker.experiment_id, tracker.handle.started)
        folder.update_json("run.json", **dict(zip(RECORD, record, strict=True)))
    with tracker:
        yield tracker


def _begun(recipe: Recipe, content: str, *, fresh: bool) -> earlier.Begun:
    """The recipe's run, perhaps begun and named by an earlier version."""
    folder = RunFolder.of(recipe, content, fresh=fresh, taken=lambda folder: _has_checkpoints(recipe, folder))
    if fresh or folder.path.exists() or _has_checkpoints(recipe, folder):
        return earlier.as_begun(folder, recipe)
    try:
        return earlier.find(recipe, content) or earlier.as_begun(folder, recipe)
    except OSError as error:
        raise ConfigError(
            f"train.checkpoint.uri: {recipe.train.checkpoint.uri} cannot be read: {error}"
        ) from error


def _has_checkpoints(recipe: Recipe, folder: RunFolder) -> bool:
    """Whether a run with that folder's name has left checkpoints, even if the folder itself is missing."""
    uri = folder.checkpoint_uri(recipe)
    try:
        return bool(open_store(uri).folders())
    except OSError as error:
        raise ConfigError(f"train.checkpoint.uri: {uri} cannot be read: {error}") from error


def absolute(recipe: Recipe, root: Path) -> Recipe:
    """Paths as workers on other nodes and in other folders must see them."""

    def absolute(path: str) -> str:
        return path if "://" in path else str((root / path).resolve())

    mix = tuple(other.model_copy(update={"path": absolute(other.path)}) for other in recipe.data.mix)
    data = recipe.data.model_copy(update={"path": absolute(recipe.data.path), "mix": mix})
    fields = ("held_out", "likelihood_on", "cache")
    places = {field: getattr(recipe.evaluate, field) for field in fields}
    evaluate = recipe.evaluate.model_copy(
        update={field: absolute(place) for field, place in places.items() if place is not None}
    )
    changes = {"data": data, "storage": absolute(recipe.storage), "evaluate": evaluate}
    if (uri := recipe.train.checkpoint.uri) is not None:
        checkpoint = recipe.train.checkpoint.model_copy(update={"uri": absolute(uri)})
        changes["train"] = recipe.train.model_copy(update={"checkpoint": checkpoint})
    return recipe.model_copy(update=changes)


def packed(recipe: Recipe, display: Display) -> Manifest:
    """The data's verified manifest; packs the data first if the recipe names a source."""
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
        note=display.note,
        wording=IN_RECIPES,
    )
    for fault in report.skipped:
        display.note(f"skipped {fault}")
    display.done(f"{report.manifest.samples:,} images in {data.path}")
    return report.manifest

"""Evaluation from the command line: of a run, a checkpoint, or images."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sfumato import recipe as recipes
from sfumato.core.batch import DataSpec
from sfumato.core.validation import explain
from sfumato.errors import ConfigError
from sfumato.evaluation.config import EvaluateSettings
from sfumato.evaluation.evaluation import Evaluation
from sfumato.evaluation.references.reference import Reference
from sfumato.evaluation.references.statistics import (
    StatisticsReference,
    is_statistics,
    write_statistics,
)
from sfumato.evaluation.report import EvaluationReport
from sfumato.evaluation.stage import evaluate, features_of_reference
from sfumato.evaluation.subjects.images import Resize, Resized, open_images
from sfumato.recipe import Recipe
from sfumato.runtime.cluster import ray_cluster
from sfumato.runtime.runs import earlier
from sfumato.runtime.runs.display import Display
from sfumato.runtime.runs.pretrained import resolved_options
from sfumato.runtime.runs.run_folder import RunFolder
from sfumato.runtime.runs.targets import Target, model_of
from sfumato.sampling.model_folder import read_model_folder
from sfumato.tracking.run import TrackerHandle
from sfumato.tracking.store import TrackingStore

FOLDER = "evaluations"
CACHE = ".cache"


@dataclass(frozen=True, slots=True)
class Request:
    """The request that the flags of `sfumato evaluate` make. `changes` are fields of `evaluate:`."""

    changes: Mapping[str, Any]
    against: str | None = None
    resize: Resize | None = None
    out: Path | None = None
    statistics: Path | None = None
    """Where to write mean and covariance of the images' features, instead of comparing them."""
    base: Path | None = None
    """The place of an adapter's base; None for its place in training."""
    trust: bool = False
    """Whether a model folder may name classes by import path, whose code is run."""

    @property
    def plain(self) -> bool:
        """Whether this is the evaluation that the recipe describes, at its own place."""
        return not (self.against or self.out or self.resize or self.statistics)

    def overrides(self) -> list[str]:
        """The changes as overrides of a recipe."""
        return [f"evaluate.{field}={_as_yaml(value)}" for field, value in self.changes.items()]


def measure(
    target: Target, request: Request, overrides: Sequence[str], *, root: Path, display: Display
) -> dict[str, Any]:
    """Evaluate a checkpoint, a model folder, images, or a run against other data than its own.

    A recipe, given or that of the run, takes the `overrides` and the request's changes; without one the
    settings are the defaults with these changes.

    The report goes to `--out`, a checkpoint's into its run's folder and its figures on the run in MLflow.
    Raises the one-line errors of `evaluation.stage`.
    """
    if target.kind == "recipe":
        raise ConfigError(
            f"{target.about}: --against, --out and --resize measure a run: name it instead of its recipe"
        )
    recipe = None
    if target.recipe is not None:
        recipe = recipes.load(target.recipe, [*overrides, *request.overrides()])
    elif overrides:
        raise ConfigError(f"{overrides[0]!r} changes a recipe, and {target.about} has none: use the flags")
    if request.statistics is not None:
        return _write_statistics(
            target, request, _settings(recipe, request), request.statistics, root, display
        )
    with _evaluation(target, request, recipe, root=root, display=display) as evaluation:
        display.line(f"{target.about} against {evaluation.reference.size:,} reference images")
        display.stage("evaluate")
        with _cluster(evaluation.settings, evaluation.out / "logs"):
            report = evaluate(evaluation)
    if report.kind == "reconstructions":
        display.note(f"{target.about} draws no images of its own: its reconstructions count")
    display.done(f"{report.samples:,} {report.kind}")
    if target.kind == "checkpoint" and target.run is not None and recipe is not None and request.plain:
        _record(target, recipe, report, root)
    return result_of(report, evaluation.out)


def result_of(report: EvaluationReport, out: Path) -> dict[str, Any]:
    """A report as a command returns it: plain data."""
    return {
        "metrics": dict(report.metrics),
        "intervals": {name: [found["low"], found["high"]] for name, found in report.intervals.items()},
        "kind": report.kind,
        "weak": {name: list(marks) for name, marks in report.marks.items()},
        "samples": report.samples,
        "seconds": report.seconds,
        "seconds_per_image": report.seconds_per_image,
        "evaluations_per_image": report.evaluations_per_image,
        "folder": str(out),
    }


def figures_of(report: EvaluationReport, prefix: str = "eval") -> dict[str, float]:
    """The values recorded in MLflow: every figure, the ends of its interval, and the cost per image."""
    values = {f"{prefix}/{name}": value for name, value in report.metrics.items()}
    for name, found in report.intervals.items():
        for end in ("low", "high"):
            values[f"{prefix}/{name}/{end}"] = float(str(found[end]))
    values[f"{prefix}/seconds_per_image"] = report.seconds_per_image
    return values


def comparable(report: EvaluationReport) -> str:
    """Equal for two reports whose figures compare: the same reference, features, and number of samples."""
    features = {name: found.get("digest") for name, found in sorted(report.features.items())}
    parts: list[object] = [report.kind, report.samples, report.reference_digest, features]
    details = sorted(report.details.items())
    balls = {figure: found["k"] for figure, found in details if found.get("k", 3) != 3}
    if balls:  # 3 was the only default once, and is not named, so that old records agree
        parts.append(balls)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def tracker_handle(recipe: Recipe, folder: RunFolder, root: Path) -> TrackerHandle | None:
    """How to write into a run that another process may have open; None if it is not recorded."""
    known = folder.read_json("run.json") or {}
    if not recipe.tracking.enabled or "mlflow_run_id" not in known:
        return None
    return TrackerHandle(
        TrackingStore.of(recipe.tracking, root),
        known["mlflow_experiment_id"],
        known["mlflow_run_id"],
        0.0,
        str(folder.path / "tracking"),
        recipe.tracking,
    )


@contextlib.contextmanager
def _evaluation(
    target: Target, request: Request, recipe: Recipe | None, *, root: Path, display: Display
) -> Iterator[Evaluation]:
    """The requested target; a model built from a checkpoint exists only inside the block."""
    settings = _settings(recipe, request)
    images = open_images(target.place) if target.kind == "images" else None
    if images is not None and request.base is not None:
        raise ConfigError(f"--base is for models, but this measures {target.about}: leave it out")
    reference = _reference(target, request, recipe, images, root)
    if target.run is not None:
        settings = earlier.measured_alike(settings, reference.spec, target.run)
    out = request.out or _place(target, request, root)
    cache = root / "runs" / CACHE if recipe is None else Path(root, recipe.storage) / CACHE
    if images is not None:
        images = _resized(images, reference, request.resize)
        yield Evaluation.of_images(
            _all_of(images, settings, request),
            images=images,
            reference=reference,
            out=out,
            cache=cache,
            progress=display.update,
            phase=display.phase,
        )
        return
    if request.resize is not None:
        raise ConfigError("--resize is for images; a model's samples are measured at the size it makes")
    with model_of(_model_place(target), root=root, trust=request.trust) as found:
        sampling = resolved_options(found.model, settings.sampling, root, trust=found.trusted)
        yield Evaluation.of_model(
            settings.model_copy(update={"sampling": sampling}),
            model_folder=found.model,
            reference=reference,
            out=out,
            cache=cache,
            progress=display.update,
            phase=display.phase,
            trust=found.trusted,
            base=request.base,
        )


def _record(target: Target, recipe: Recipe, report: EvaluationReport, root: Path) -> None:
    """Record a checkpoint's figures on its run, at the checkpoint's images."""
    assert target.run is not None
    handle = tracker_handle(recipe, target.run, root)
    if handle is None:
        return
    images = int(Path(target.place).name.split("-")[1])
    tracker = handle.open("evaluate")
    try:
        tracker.metrics(figures_of(report), step=images)
        tracker.tags(report.tags())
    finally:
        tracker.close()


def _settings(recipe: Recipe | None, request: Request) -> EvaluateSettings:
    if recipe is not None:
        return recipe.evaluate
    try:
        return EvaluateSettings.model_validate(dict(request.changes))
    except ValidationError as error:
        raise ConfigError(*explain(error, EvaluateSettings, ("evaluate",))) from None


def _reference(
    target: Target, request: Request, recipe: Recipe | None, images: Reference | None, root: Path
) -> Reference:
    if request.against is not None and is_statistics(request.against):
        return StatisticsReference(
            request.against, images.spec if images else _made_by(target, request, root)
        )
    if request.against is not None:
        return open_images(request.against)
    if recipe is None:
        raise ConfigError(
            f"{target.about}: against what? pass --against with packed shards or a folder of real images"
        )
    return open_images(recipe.data.path, recipe.data.on_error)


def _made_by(target: Target, request: Request, root: Path) -> DataSpec:
    """The kind of images that a model generates."""
    with model_of(_model_place(target), root=root, trust=request.trust) as found:
        return read_model_folder(found.model, trust=found.trusted).data


def _model_place(target: Target) -> str:
    return target.place if target.run is None or target.kind == "checkpoint" else str(target.run.path)


def _write_statistics(
    target: Target, request: Request, settings: EvaluateSettings, path: Path, root: Path, display: Display
) -> dict[str, Any]:
    """Mean and covariance of features of all images, one file for each kind of features."""
    if target.kind != "images":
        raise ConfigError(
            f"--statistics is for images, and {target.about} is none: sample it to a folder first"
        )
    images = open_images(target.place)
    display.stage("evaluate")
    out = _place(target, request, root)
    evaluation = Evaluation.of_images(
        settings,
        images=images,
        reference=images,
        out=out,
        cache=root / "runs" / CACHE,
        progress=display.update,
        phase=display.phase,
    )
    found = features_of_reference(evaluation, partial(_cluster, settings, out / "logs"))
    written = []
    for name, features in found.items():
        place = path if len(found) == 1 else path.with_name(f"{path.stem}-{name}{path.suffix}")
        write_statistics(place, features.moments)
        written.append(str(place))
    display.done(f"mu and sigma of {images.size:,} images")
    return {
        "metrics": {},
        "kind": "images",
        "samples": images.size,
        "statistics": written,
        "folder": str(path.parent),
    }


def _resized(images: Reference, reference: Reference, method: Resize | None) -> Reference:
    same = (images.spec.height, images.spec.width) == (reference.spec.height, reference.spec.width)
    if method is None or same:
        return images
    return Resized(images, reference.spec.height, reference.spec.width, method)


def _all_of(images: Reference, settings: EvaluateSettings, request: Request) -> EvaluateSettings:
    """The number of images to use: all, or as many as requested. Raises ConfigError if there are fewer."""
    asked = request.changes.get("samples")
    if asked is not None and int(asked) > images.size:
        raise ConfigError(f"--samples {asked}: there are {images.size:,} images; ask for as many or fewer")
    return settings.model_copy(update={"samples": int(asked or images.size)})


def _place(target: Target, request: Request, root: Path) -> Path:
    """The folder of the report and the finished blocks: the same for the same request."""
    if target.kind == "checkpoint" and target.run is not None and request.against is None:
        return target.run.path / "evaluation" / Path(target.place).name
    words = f"{Path(target.place).resolve()}\0{request.against}\0{request.resize}"
    name = Path(target.place).name or target.kind
    return root / FOLDER / f"{name}-{hashlib.sha256(words.encode()).hexdigest()[:8]}"


def _cluster(settings: EvaluateSettings, logs: Path) -> contextlib.AbstractContextManager[None]:
    """The Ray cluster of the actors; nothing where this process does their work."""
    if settings.actors == 0:
        return contextlib.nullcontext()
    return ray_cluster.cluster(ray_cluster.cpus_of(settings), logs, gpus=settings.gpus_per_actor)


def _as_yaml(value: Any) -> str:
    listed = isinstance(value, Sequence) and not isinstance(value, str)
    return f"[{','.join(map(str, value))}]" if listed else str(value)

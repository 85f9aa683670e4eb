"""The results of a sweep: the table, the best recipe, plots, and tags in MLflow."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import yaml

from sfumato.recipe import Recipe
from sfumato.runtime.commands.evaluate import tracker_handle
from sfumato.runtime.sweep.prepare import lookup
from sfumato.runtime.sweep.sweep_plan import SweepPlan
from sfumato.tracking.run import Status, Tracker
from sfumato.tuning import fields, importance, plots
from sfumato.tuning.config import TuneSettings
from sfumato.tuning.journal import Journal, Trial, best_of, common_images, stopped_share

BEST = "best.yaml"
ARTIFACTS = "sweep"


def log_space(tracker: Tracker, plan: SweepPlan, tune: TuneSettings) -> None:
    """Show the searched space in MLflow's UI."""
    path = Path(plan.path) / "space.json"
    path.write_text(json.dumps(tune.model_dump(mode="json", exclude_unset=True), indent=1) + "\n")
    tracker.artifact(path, ARTIFACTS)


def close_trials(plan: SweepPlan, recipe: Recipe, journal: Journal) -> None:
    """End the MLflow runs of trials whose own process could not."""
    for trial in journal.in_order():
        status: Status | None = {"failed": "FAILED", "running": "KILLED"}.get(trial.status)  # type: ignore[assignment]
        handle = tracker_handle(recipe, plan.folder(trial.number), Path(plan.root))
        if status is not None and handle is not None:
            handle.open("sweep").finish(status)


def finish(
    plan: SweepPlan, recipe: Recipe, tune: TuneSettings, journal: Journal, tracker: Tracker
) -> dict[str, Any]:
    """Write and log everything; returns the result of the command."""
    trials, folder = journal.in_order(), Path(plan.path)
    best = best_of(trials, plan.mode)
    known = lookup(recipe)
    shares = importance.importances(trials, tune.space, known)
    written = [_table(folder / "trials.csv", trials, list(tune.space))]
    if best is not None:
        written.append(_best(folder / BEST, plan, best))
        _mark_best(plan, recipe, trials, best)
        assert best.last is not None
        tracker.metrics({f"sweep/{plan.metric}": best.last.value}, step=journal.total_images())
        tracker.tags({"sfumato.best_trial": best.number, "sfumato.best_value": best.last.value})
    picture = folder / "parallel_coordinates.png"
    number = None if best is None else best.number
    if plots.parallel_coordinates(
        picture, trials, tune.space, known, metric=plan.metric, mode=plan.mode, best=number
    ):
        written.append(picture)
    if plots.importance(folder / "importance.png", shares, metric=plan.metric, trials=len(trials)):
        written.append(folder / "importance.png")
    for path in written:
        tracker.artifact(path, ARTIFACTS)
    result = _result(plan, journal, best, shares)
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    tracker.artifact(folder / "result.json", ARTIFACTS)
    return result


def _result(
    plan: SweepPlan, journal: Journal, best: Trial | None, shares: dict[str, float]
) -> dict[str, Any]:
    trials = journal.in_order()
    images = common_images(trials)
    result: dict[str, Any] = {
        "folder": plan.path,
        "mlflow_run_id": plan.parent,
        "metric": plan.metric,
        "mode": plan.mode,
        "seconds": round(journal.seconds, 1),
        "images": journal.total_images(),
        "stopped_early": round(stopped_share(trials), 4),
        "importance": shares,
        "trials": [
            {
                "trial": trial.number,
                "status": trial.status,
                "images": trial.images,
                "value": None if trial.last is None else trial.last.value,
                "reason": trial.reason,
                "retries": trial.retries,
                "weights_from": trial.parents,
                "values": trial.values,
            }
            for trial in trials
        ],
    }
    if best is not None and best.last is not None:
        result["best"] = {
            "trial": best.number,
            "value": best.last.value,
            "images": best.last.images,
            "values": best.values,
            "recipe": str(Path(plan.path) / BEST),
            "run": str(plan.folder(best.number).path),
        }
        first = journal.trials.get(0)
        if images is not None and first is not None and first is not best:
            result["at_equal_images"] = {"images": images, "first": first.at(images), "best": best.at(images)}
    return result


def _best(path: Path, plan: SweepPlan, best: Trial) -> Path:
    """The best trial's recipe as a user would write it, ready to run."""
    content = fields.with_values(plan.content, best.values)
    content["name"] = f"{plan.content['name']}-best"
    assert best.last is not None
    reached = f"{plan.metric} {best.last.value:.6g} at {best.last.images:,} images"
    head = [f"Best trial ({best.number}) of {path.parent.name}: {reached}.", f"  sfumato run {path}"]
    if best.parents:
        head += [
            "Its weights came from other trials on the way (population based training), so that training",
            "with these values from the start need not reach the same.",
        ]
    path.write_text("".join(f"# {line}\n" for line in head) + yaml.safe_dump(content, sort_keys=False))
    return path


def _mark_best(plan: SweepPlan, recipe: Recipe, trials: list[Trial], best: Trial) -> None:
    for trial in trials:
        handle = tracker_handle(recipe, plan.folder(trial.number), Path(plan.root))
        if handle is not None:
            child = handle.open("sweep")
            marks = {"best": str(trial is best).lower(), "status": trial.status, "reason": trial.reason}
            child.tags({f"sfumato.{name}": value for name, value in marks.items()})
            child.close()


def _table(path: Path, trials: list[Trial], names: list[str]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "status", "images", "value", *names])
        for trial in trials:
            value = "" if trial.last is None else trial.last.value
            rest = [json.dumps(trial.values[name]) if name in trial.values else "" for name in names]
            writer.writerow([trial.number, trial.status, trial.images, value, *rest])
    return path

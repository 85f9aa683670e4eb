"""A sweep from start to finish: check, run on Ray Tune, report; or resume an interrupted one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from sfumato import recipe as recipes
from sfumato.core.earlier_defaults import FIRST, SCHEMA
from sfumato.data.columns import spec_of
from sfumato.data.format.manifest import Manifest
from sfumato.errors import ConfigError, TrainingError
from sfumato.recipe import Recipe
from sfumato.runtime.cluster import forking, ray_cluster
from sfumato.runtime.runs import live
from sfumato.runtime.runs.display import Display
from sfumato.runtime.runs.run_folder import RunFolder
from sfumato.runtime.runs.session import prepared
from sfumato.runtime.sweep import on_ray, prepare, results
from sfumato.runtime.sweep.on_ray import Sweep
from sfumato.runtime.sweep.sweep_plan import PLAN, SweepPlan, changes_for, sweep_folder
from sfumato.tracking.run import Tracker
from sfumato.tracking.start import DatasetInfo
from sfumato.tuning.config import TuneSettings
from sfumato.tuning.journal import Journal, best_of

JOURNAL = "journal.jsonl"
Resume = bool | Literal["if any"]


def planned(content: Mapping[str, Any], *, display: Display, root: Path) -> dict[str, Any]:
    """The trials that a sweep would start with, all checked, without starting anything."""
    recipe, tune = _read(content)
    recipe, manifest = prepared(recipe, display, root=root)
    plan = _plan(content, recipe, tune, Path(), root)
    known = prepare.lookup(recipe)
    trials = prepare.trial_values(tune, known)
    prepare.check_trials(plan, tune, recipe, spec_of(recipe.data, manifest), manifest.samples, trials)
    return {"trials": trials, "learns": tune.search.learns}


def run(
    content: Mapping[str, Any],
    *,
    display: Display,
    root: Path,
    resume: Resume = False,
    fresh: bool = False,
    new_record: bool = False,
) -> dict[str, Any]:
    """Run the sweep of a recipe's plain data (`recipe.read`), or resume it; returns the results.

    `new_record` creates new MLflow records for the sweep and its unfinished trials.
    Raises ConfigError for a space with an impossible trial, before any trial starts, and for a metric that
    does not exist; TrainingError if every trial failed.
    """
    recipe, tune = _read(content)
    folder = _folder(recipe, content, root, resume=resume, fresh=fresh)
    with ray_cluster.workers_ready(forking.SWEEP):
        recipe, manifest = prepared(recipe, display, root=root)
        plan = _plan(content, recipe, tune, folder, root)
        values = prepare.trial_values(tune, prepare.lookup(recipe))
        prepare.check_trials(plan, tune, recipe, spec_of(recipe.data, manifest), manifest.samples, values)
        folder.mkdir(parents=True, exist_ok=True)
        with live.working(folder, display.note, offer=""):
            return _work(plan, recipe, tune, manifest, values, display, new_record=new_record)


def _work(
    plan: SweepPlan,
    recipe: Recipe,
    tune: TuneSettings,
    manifest: Manifest,
    values: Sequence[Mapping[str, Any]],
    display: Display,
    *,
    new_record: bool,
) -> dict[str, Any]:
    """Run the trials that the sweep's journal lacks; returns the results."""
    folder, root = Path(plan.path), Path(plan.root)
    plan.stop_file.unlink(missing_ok=True)
    journal = Journal(folder / JOURNAL)
    for number, chosen in enumerate(values):
        if number not in journal.trials:
            journal.add("trial", number, values=chosen)
    if new_record:
        _forget_records(folder)
    with _tracked(plan, recipe, tune, manifest, root) as tracker:
        plan = replace(plan, parent=tracker.run_id)
        plan.save()
        results.log_space(tracker, plan, tune)
        try:
            on_ray.run(Sweep(plan, recipe, tune, manifest, journal), display)
        finally:
            results.close_trials(plan, recipe, journal)
        result = results.finish(plan, recipe, tune, journal, tracker)
    if best_of(journal.in_order(), plan.mode) is None:
        reasons = {f"trial {t.number}: {t.reason}" for t in journal.in_order() if t.status == "failed"}
        raise TrainingError("no trial produced a result\n" + "\n".join(sorted(reasons)))
    return result


def _read(content: Mapping[str, Any]) -> tuple[Recipe, TuneSettings]:
    """The recipe and its `tune:` part. Raises ConfigError for problems of that part itself."""
    from sfumato.runtime.sweep.searchers import check_installed

    recipe = recipes.parse(content)
    if recipe.tune is None:
        raise ConfigError(
            "the recipe has no `tune:` part, which says what to search; see pipelines/digits/sweep.yaml"
        )
    found = prepare.settings_problems(recipe, recipe.tune)
    if found:
        raise ConfigError(*found)
    check_installed(recipe.tune.search.kind)
    prepare.mode_of(recipe.tune)
    return recipe, recipe.tune


def _plan(
    content: Mapping[str, Any], recipe: Recipe, tune: TuneSettings, folder: Path, root: Path
) -> SweepPlan:
    begun = SweepPlan.load(str(folder)).content.get("schema", FIRST) if (folder / PLAN).is_file() else SCHEMA
    return SweepPlan(
        # An older version's sweep keeps that version's defaults: its trials must compare.
        content={"schema": begun, **{key: value for key, value in content.items() if key != "tune"}},
        path=str(folder),
        root=str(root.resolve()),
        metric=tune.metric,
        mode=prepare.mode_of(tune),
        parent="",
        changes=changes_for(recipe, tune, ray_cluster.cores()),
    )


def _folder(recipe: Recipe, content: Mapping[str, Any], root: Path, *, resume: Resume, fresh: bool) -> Path:
    """The sweep's folder: a new one, or with `resume` the newest."""
    first = sweep_folder(recipe, content, root)
    known = [first] if (first / PLAN).is_file() else []
    attempt = 2
    while (follower := first.with_name(f"{first.name}-{attempt}")).exists():
        known.append(follower)
        attempt += 1
    if resume is True and not known:
        raise ConfigError(f"there is no sweep of this recipe to resume ({first}): leave --resume out")
    if resume and known:
        return known[-1]
    if known and not fresh:
        raise ConfigError(
            f"there is a sweep of this recipe already, {known[-1]}: --resume resumes it (or shows its "
            "results), --fresh starts another"
        )
    return follower if known else first


def _forget_records(folder: Path) -> None:
    """Forget the sweep's and its trials' MLflow records, so that they start new ones."""
    if (folder / PLAN).is_file():
        replace(SweepPlan.load(str(folder)), parent="").save()
    for known in (folder / "trials").glob("*/run.json"):
        RunFolder(known.parent).forget_record()


def _tracked(plan: SweepPlan, recipe: Recipe, tune: TuneSettings, manifest: Manifest, root: Path) -> Tracker:
    """The sweep's own run in MLflow, the parent of its trials' runs."""
    known = SweepPlan.load(plan.path).parent or None if (Path(plan.path) / PLAN).is_file() else None
    return Tracker.start(
        recipe.tracking,
        root=root,
        folder=Path(plan.path),
        run_name=f"{recipe.name}-sweep",
        run_id=known,
        params={"tune": tune.model_dump(mode="json", exclude_defaults=True)},
        tags={"sfumato.kind": "sweep", "sfumato.folder": plan.path, "sfumato.family": recipe.model.family},
        dataset=DatasetInfo(name=manifest.name, digest=manifest.digest, source=recipe.data.path),
        recipe_yaml=recipe.to_yaml(),
    )

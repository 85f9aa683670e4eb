"""A sweep from beginning to end: check, run on Ray Tune, report; or go on with one that was cut short."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfumato import recipe as recipes
from sfumato.data.manifest import Manifest
from sfumato.errors import ConfigError, TrainingError
from sfumato.recipe import Recipe
from sfumato.runtime import ray_cluster, stages
from sfumato.runtime.display import Display
from sfumato.runtime.sweep import prepare, report
from sfumato.runtime.sweep.plan import PLAN, Plan, changes_for, sweep_folder
from sfumato.tracking.run import Tracker
from sfumato.tracking.start import DatasetInfo
from sfumato.tuning.config import PbtSettings, TuneSettings
from sfumato.tuning.journal import Journal, Trial, best_of

JOURNAL = "journal.jsonl"
_VARIABLES = {
    # Tune's own files, tables and handlers; ours are the journal, the screen and the command's ctrl-C.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


def planned(content: Mapping[str, Any], *, display: Display, root: Path) -> dict[str, Any]:
    """The trials that a sweep would start with, every one checked; nothing is started."""
    recipe, tune = _read(content)
    recipe, manifest = stages.prepared(recipe, display, root=root)
    plan = _plan(content, recipe, tune, Path(), root)
    known = prepare.lookup(recipe)
    trials = prepare.trial_values(tune, known)
    prepare.check_trials(plan, tune, recipe, manifest.spec, manifest.samples, trials)
    return {"trials": trials, "learns": tune.search.learns}


def run(
    content: Mapping[str, Any], *, display: Display, root: Path, resume: bool = False, fresh: bool = False
) -> dict[str, Any]:
    """Run the sweep of a recipe's plain data (`recipe.read`), or go on with it; what came of it.

    Raises ConfigError for a space in which a trial would be impossible, before any trial starts, and for a
    metric that there is not; TrainingError where every trial failed.
    """
    recipe, tune = _read(content)
    folder = _folder(recipe, content, root, resume=resume, fresh=fresh)
    recipe, manifest = stages.prepared(recipe, display, root=root)
    plan = _plan(content, recipe, tune, folder, root)
    values = prepare.trial_values(tune, prepare.lookup(recipe))
    prepare.check_trials(plan, tune, recipe, manifest.spec, manifest.samples, values)
    folder.mkdir(parents=True, exist_ok=True)
    plan.stop_file.unlink(missing_ok=True)
    journal = Journal(folder / JOURNAL)
    for number, chosen in enumerate(values):
        if number not in journal.trials:
            journal.add("trial", number, values=chosen)
    with _tracked(plan, recipe, tune, manifest, root) as tracker:
        plan = Plan(**{**vars(plan), "parent": tracker.run_id})
        plan.save()
        report.log_space(tracker, plan, tune)
        try:
            _on_ray(plan, recipe, tune, manifest, journal, display)
        finally:
            report.close_trials(plan, recipe, journal)
        result = report.finish(plan, recipe, tune, journal, tracker)
    if best_of(journal.in_order(), plan.mode) is None:
        reasons = {f"trial {t.number}: {t.reason}" for t in journal.in_order() if t.status == "failed"}
        raise TrainingError("no trial came to a result\n" + "\n".join(sorted(reasons)))
    return result


def _read(content: Mapping[str, Any]) -> tuple[Recipe, TuneSettings]:
    """The recipe and its `tune:` part. Raises ConfigError for what is wrong with it by itself."""
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


def _plan(content: Mapping[str, Any], recipe: Recipe, tune: TuneSettings, folder: Path, root: Path) -> Plan:
    return Plan(
        content={key: value for key, value in content.items() if key != "tune"},
        path=str(folder),
        root=str(root.resolve()),
        metric=tune.metric,
        mode=prepare.mode_of(tune),
        parent="",
        changes=changes_for(recipe, tune, ray_cluster.cores()),
    )


def _folder(recipe: Recipe, content: Mapping[str, Any], root: Path, *, resume: bool, fresh: bool) -> Path:
    """The sweep's folder: a new one, or with `resume` the newest that there is."""
    first = sweep_folder(recipe, content, root)
    known = [first] if (first / PLAN).is_file() else []
    attempt = 2
    while (follower := first.with_name(f"{first.name}-{attempt}")).exists():
        known.append(follower)
        attempt += 1
    if resume and not known:
        raise ConfigError(f"there is no sweep of this recipe to go on with ({first}): leave --resume out")
    if resume:
        return known[-1]
    if known and not fresh:
        raise ConfigError(
            f"there is a sweep of this recipe already, {known[-1]}: --resume goes on with it (or shows what "
            "came of it), --fresh starts another"
        )
    return follower if known else first


def _tracked(plan: Plan, recipe: Recipe, tune: TuneSettings, manifest: Manifest, root: Path) -> Tracker:
    """The sweep's own run in MLflow, parent of those of its trials."""
    known = Plan.load(plan.path).parent if (Path(plan.path) / PLAN).is_file() else None
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


def _on_ray(
    plan: Plan, recipe: Recipe, tune: TuneSettings, manifest: Manifest, journal: Journal, display: Display
) -> None:
    """Run what is left of the sweep. Raises ConfigError where the metric turns out not to exist."""
    waiting = [trial for trial in journal.in_order() if not trial.ended]
    numbers = [n for n in range(len(journal.trials), tune.trials or 0)] if tune.search.learns else []
    if not waiting and not numbers:
        return
    os.environ.update({name: value for name, value in _VARIABLES.items() if name not in os.environ})
    needs = plan.recipe(0, {})
    gpus = recipe.parallel.workers * recipe.parallel.gpus_per_worker
    if needs.evaluate.every is not None:
        gpus += needs.evaluate.actors_during * needs.evaluate.gpus_per_actor
    cpus = tune.concurrency * ray_cluster.cpus_to_train(needs)
    with ray_cluster.cluster(cpus, Path(plan.path) / "logs", gpus=tune.concurrency * gpus, dashboard=True):
        logging.getLogger("ray").setLevel(logging.CRITICAL)
        missing = _tune(plan, recipe, tune, manifest, journal, display, waiting, numbers)
    if missing is not None:
        raise ConfigError(f"tune.metric: {plan.metric!r} is never reported; there are: {', '.join(missing)}")


def _tune(
    plan: Plan,
    recipe: Recipe,
    settings: TuneSettings,
    manifest: Manifest,
    journal: Journal,
    display: Display,
    waiting: list[Trial],
    numbers: list[int],
) -> list[str] | None:
    """Ray Tune's run of these trials; the metrics that there are, where the sweep's is none of them."""
    from ray import tune
    from ray.tune import PlacementGroupFactory

    from sfumato.runtime.sweep import trial as trials
    from sfumato.runtime.sweep.progress import Progress
    from sfumato.runtime.sweep.schedulers import scheduler_for
    from sfumato.runtime.sweep.screen import Screen
    from sfumato.runtime.sweep.searchers import LearningSearch
    from sfumato.runtime.sweep.stop import SweepStopper

    known = prepare.lookup(recipe)

    def problems(values: Mapping[str, Any]) -> list[str]:
        return plan.problems(values, manifest.spec, manifest.samples)

    search, space = None, {}
    if settings.search.learns:
        search = LearningSearch(
            settings,
            plan.mode,
            plan.path,
            known,
            first=waiting,
            numbers=numbers,
            problems=problems,
            announce=lambda number, values, asked: journal.add("trial", number, values=values, asked=asked),
        )
        for trial in journal.in_order():
            if trial.ended:
                search.tell(trial)
    else:
        listed = [trials.configuration(plan.path, trial.number, trial.values)["trial"] for trial in waiting]
        space = {"sweep": plan.path, "trial": tune.grid_search(listed)}
    total = len(waiting) + len(numbers)
    scheduler = scheduler_for(settings, recipe.train.images, known, problems)
    report.replay(scheduler, journal, plan.mode)
    with Screen(display.console, plan, journal, list(settings.space), settings.trials) as screen:
        progress = Progress(plan, journal, screen, settings.scheduler.kind)
        stopper = SweepStopper(plan, settings.budget, progress)
        try:
            tune.run(
                trials.TrialActor,
                name=f"tune-{time.time_ns():x}",
                storage_path=str(Path(plan.path) / "logs"),
                metric="objective",
                mode=plan.mode,
                config=space,
                num_samples=total if search is not None else 1,
                search_alg=search,
                scheduler=scheduler,
                stop=stopper,
                callbacks=[progress],
                resources_per_trial=PlacementGroupFactory([{"memory": trials.MEMORY}]),
                max_concurrent_trials=0
                if isinstance(settings.scheduler, PbtSettings)
                else settings.concurrency,
                max_failures=settings.retries,
                checkpoint_config=tune.CheckpointConfig(num_to_keep=3, checkpoint_at_end=False),
                raise_on_failed_trial=False,
                reuse_actors=True,
                trial_name_creator=lambda trial: str(trials.number_of(trial.config)),
                trial_dirname_creator=lambda trial: f"trial-{trials.number_of(trial.config):03d}",
                verbose=0,
            )
        finally:
            progress.note_time()
    if stopper.reason and stopper.missing is None:
        display.note(f"the sweep ends early: {stopper.reason}; --resume goes on when there is more")
    return stopper.missing

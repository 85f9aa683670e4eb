"""The part of a sweep that runs on Ray: the cluster, and Ray Tune with the remaining trials."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfumato.data.columns import spec_of
from sfumato.data.format.manifest import Manifest
from sfumato.errors import ConfigError
from sfumato.recipe import Recipe
from sfumato.runtime.cluster import forking, ray_cluster
from sfumato.runtime.runs.display import Display
from sfumato.runtime.sweep import prepare
from sfumato.runtime.sweep.sweep_plan import SweepPlan
from sfumato.tuning.config import PbtSettings, TuneSettings
from sfumato.tuning.journal import Journal, Trial

_VARIABLES = {
    # Tune's own files, tables and handlers; ours are the journal, the screen and the command's ctrl-C.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


@dataclass(frozen=True)
class Sweep:
    """A running sweep; `recipe` has absolute paths."""

    plan: SweepPlan
    recipe: Recipe
    settings: TuneSettings
    manifest: Manifest
    journal: Journal

    def problems(self, values: Mapping[str, Any]) -> list[str]:
        """The reasons why a trial with these values is impossible."""
        spec = spec_of(self.recipe.data, self.manifest)
        return self.plan.problems(values, spec, self.manifest.samples)

    def waiting(self) -> list[Trial]:
        """Known trials that have not ended."""
        return [trial for trial in self.journal.in_order() if not trial.ended]

    def numbers(self) -> list[int]:
        """Trials whose values the search has yet to choose."""
        if not self.settings.search.learns:
            return []
        return list(range(len(self.journal.trials), self.settings.trials or 0))


def run(sweep: Sweep, display: Display) -> None:
    """Run the remaining trials. Raises ConfigError if the metric turns out not to exist."""
    if not sweep.waiting() and not sweep.numbers():
        return
    os.environ.update({name: value for name, value in _VARIABLES.items() if name not in os.environ})
    together, one = sweep.settings.concurrency, sweep.plan.recipe(0, {})
    gpus = one.parallel.workers * one.parallel.gpus_per_worker
    if one.evaluate.every is not None:
        gpus += one.evaluate.actors_during * one.evaluate.gpus_per_actor
    with ray_cluster.cluster(
        together * ray_cluster.cpus_to_train(one),
        Path(sweep.plan.path) / "logs",
        gpus=together * gpus,
        dashboard=True,
        modules=forking.SWEEP,
    ):
        missing = _tune(sweep, display)
    if missing is not None:
        raise ConfigError(
            f"tune.metric: {sweep.plan.metric!r} is never reported; there are: {', '.join(missing)}"
        )


def _tune(sweep: Sweep, display: Display) -> list[str] | None:
    """Run the trials with Ray Tune; returns the existing metrics if the sweep's is not among them."""
    from ray import tune
    from ray.tune import PlacementGroupFactory

    from sfumato.runtime.sweep import replay
    from sfumato.runtime.sweep import trial as trials
    from sfumato.runtime.sweep.progress import Progress
    from sfumato.runtime.sweep.schedulers import scheduler_for
    from sfumato.runtime.sweep.screen import Screen
    from sfumato.runtime.sweep.stop import SweepStopper
    from sfumato.runtime.sweep.training import forget_former

    logging.getLogger("ray").setLevel(logging.CRITICAL)
    for trial in sweep.waiting():
        forget_former(sweep.plan, trial.number)
    plan, settings, journal = sweep.plan, sweep.settings, sweep.journal
    known = prepare.lookup(sweep.recipe)
    scheduler = scheduler_for(settings, plan.mode, sweep.recipe.train.images, known, sweep.problems)
    replay.into(scheduler, journal)
    population = isinstance(settings.scheduler, PbtSettings)
    with Screen(display.console, plan, journal, list(settings.space), settings.trials) as screen:
        progress = Progress(plan, journal, screen, settings.scheduler.kind)
        stopper = SweepStopper(plan, settings.budget, progress)
        try:
            tune.run(
                trials.TrialActor,
                name=f"tune-{time.time_ns():x}",
                storage_path=str(Path(plan.path) / "logs"),
                **_trials(sweep, known),
                scheduler=scheduler,
                stop=stopper,
                callbacks=[progress],
                resources_per_trial=PlacementGroupFactory([{"memory": trials.MEMORY}]),
                max_concurrent_trials=0 if population else settings.concurrency,
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
        display.note(f"the sweep ends early: {stopper.reason}; raise the budget and use --resume to continue")
    return stopper.missing


def _trials(sweep: Sweep, known: Mapping[str, Any]) -> dict[str, Any]:
    """The trials that Tune runs: those of a list, or those that a search suggests."""
    from ray import tune

    from sfumato.runtime.sweep import trial as trials
    from sfumato.runtime.sweep.searchers import LearningSearch

    plan, journal, waiting, numbers = sweep.plan, sweep.journal, sweep.waiting(), sweep.numbers()
    if not sweep.settings.search.learns:
        listed = [trials.configuration(plan.path, trial.number, trial.values)["trial"] for trial in waiting]
        return {"config": {"sweep": plan.path, "trial": tune.grid_search(listed)}, "num_samples": 1}
    search = LearningSearch(
        sweep.settings,
        plan.mode,
        plan.path,
        known,
        first=waiting,
        numbers=numbers,
        problems=sweep.problems,
        announce=lambda number, values, asked: journal.add("trial", number, values=values, asked=asked),
    )
    for trial in journal.in_order():
        if trial.ended:
            search.tell(trial)
    return {"config": {}, "num_samples": len(waiting) + len(numbers), "search_alg": search}

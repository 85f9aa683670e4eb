"""The parts of a sweep that decide with Ray Tune's classes, without a cluster: searches and schedulers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("optuna", reason="optuna is not installed (extra `tune`)")

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import TrialScheduler

from sfumato.errors import ConfigError
from sfumato.runtime.sweep import prepare, replay
from sfumato.runtime.sweep.schedulers import Explore, scheduler_for
from sfumato.runtime.sweep.searchers import LearningSearch
from sfumato.runtime.sweep.trial import configuration, values_of
from sfumato.tuning.config import PbtSettings, TuneSettings
from sfumato.tuning.journal import Journal, Trial

SPACE = {
    "lr": {"loguniform": [1e-6, 1.0]},
    "width": {"choice": [[8], [16], [32]]},
    "deep": {"uniform": [1, 9], "step": 2, "when": {"width": [[32]]}},
}
BEST_LR = 1e-3


def settings(**changes: Any) -> TuneSettings:
    content = {
        "space": SPACE,
        "metric": "train/d/loss",
        "trials": 40,
        "search": {"kind": "optuna"},
        **changes,
    }
    return TuneSettings.model_validate(content)


def search(
    known: list[dict[str, Any]], numbers: range, first: list[Trial] | None = None, **changes: Any
) -> LearningSearch:
    return LearningSearch(
        settings(**changes),
        "min",
        "sweep",
        {},
        first=first or [],
        numbers=numbers,
        problems=lambda values: ["too fast"] if values["lr"] > 0.1 else [],
        announce=lambda number, values, asked: known.append(
            {"number": number, "values": values, "asked": asked}
        ),
    )


def loss(values: dict[str, Any]) -> float:
    return math.log10(values["lr"] / BEST_LR) ** 2 + (values["width"] != [32])


def test_a_learning_search_comes_nearer_and_suggests_what_is_possible_alone() -> None:
    known: list[dict[str, Any]] = []
    found = search(known, range(40))
    for number in range(40):
        config = found.suggest(f"t{number}")
        assert isinstance(config, dict)
        values = values_of(config)
        assert values["lr"] <= 0.1 and values["width"] in ([8], [16], [32])
        assert ("deep" in values) == (values["width"] == [32])
        assert values.get("deep", 1) in (1, 3, 5, 7, 9)
        found.on_trial_complete(f"t{number}", {"objective": loss(values)})
    assert found.suggest("one more") == "FINISHED"
    assert [entry["number"] for entry in known] == list(range(40))
    losses = [loss(entry["values"]) for entry in known]
    assert np.median(losses[-15:]) < 0.5 * np.median(losses[:10])


def test_trials_that_are_known_come_first_and_earlier_ones_are_learnt_from() -> None:
    known: list[dict[str, Any]] = []
    waiting = Trial(0, {"lr": 0.01, "width": [8]})
    found = search(known, range(1, 2), [waiting])
    for number in range(30):
        asked = {"p0": BEST_LR * 10 ** (0.01 * number), "p1": 2, "p2": 1.0}
        journal = Trial(number, {}, asked=asked)
        journal.reports = [_report(10, loss({"lr": asked["p0"], "width": [32]}))]
        found.tell(journal)
    for number in range(30):
        journal = Trial(number, {}, asked={"p0": 1e-6 * 1.1**number, "p1": 0, "p2": 1.0})
        journal.reports = [_report(10, 10.0)]
        found.tell(journal)
    config = found.suggest("a")
    assert isinstance(config, dict) and values_of(config) == waiting.values
    config = found.suggest("b")
    assert isinstance(config, dict)
    assert values_of(config)["width"] == [32] and 1e-4 < values_of(config)["lr"] < 1e-1


def _report(images: int, value: float) -> Any:
    from sfumato.tuning.journal import Report

    return Report(images, value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "hebo"}, "needs Python's module 'hebo'"),
        ({"kind": "optuna", "options": {"sead": 1}}, "optuna does not take this space or these options"),
    ],
)
def test_a_search_that_cannot_be_had_is_said_in_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        search([], range(1), search=given)


def _told(path: Path, finals: list[float]) -> Journal:
    journal = Journal(path)
    for number, value in enumerate(finals):
        journal.add("trial", number, values={})
        journal.add("report", number, images=100, value=value)
        journal.add("end", number, status="stopped")
    return journal


@pytest.mark.parametrize("kind", ["asha", "median"])
def test_a_resumed_sweep_judges_trials_by_those_that_ended_before(tmp_path: Path, kind: str) -> None:
    finals = [1.0, 2.0, 3.0, 4.0, 5.0]
    options = {"reduction": 2} if kind == "asha" else {}
    given = settings(search={"kind": "random"}, scheduler={"kind": kind, "grace": 100, **options})

    def decision(value: float, journal: Journal) -> str:
        scheduler = scheduler_for(given, "min", 1_000, {}, lambda values: [])
        replay.into(scheduler, journal)
        trial = TuneTrial("new", trial_id="new", stub=True)
        nobody: Any = None
        scheduler.on_trial_add(nobody, trial)
        return scheduler.on_trial_result(nobody, trial, {"images": 100, "objective": value})

    before = _told(tmp_path / "before.jsonl", finals)
    median = float(np.median(finals))
    assert decision(median + 0.5, before) == TrialScheduler.STOP
    assert decision(median - 0.5, before) == TrialScheduler.CONTINUE
    if kind == "asha":  # median stopping asks its controller whether others wait
        assert decision(median + 0.5, Journal(tmp_path / "none.jsonl")) == TrialScheduler.CONTINUE


def test_population_based_training_explores_near_the_giver_and_never_the_impossible() -> None:
    given = settings(
        search={"kind": "random"}, scheduler={"kind": "pbt", "every": 100}, trials=4, concurrency=4
    )
    assert isinstance(given.scheduler, PbtSettings)
    explore = Explore(given, given.scheduler, {}, lambda values: ["too fast"] if values["lr"] > 0.1 else [])
    giver = {"lr": 0.09, "width": [16]}
    found = [values_of(explore(configuration("sweep", 3, giver))) for _ in range(60)]
    assert all(values["lr"] <= 0.1 for values in found)
    near = [values["lr"] for values in found if values["lr"] == pytest.approx(0.072)]
    assert 20 < len(near) < 60, (
        "most are moved down, some are drawn anew, none is moved up past what is possible"
    )
    stuck = Explore(given, given.scheduler, {}, lambda values: ["never"])
    assert json.loads(stuck(configuration("sweep", 3, giver))["trial"]) == {"number": 3, "values": giver}


@pytest.mark.parametrize(
    ("budget", "reason"),
    [
        ({"images": 500}, "the budget of 500 images is spent"),
        ({"images": 501}, ""),
        ({"seconds": 60.0}, "the budget of 60 seconds is spent"),
        ({"seconds": 3_600.0}, ""),
    ],
)
def test_a_sweep_ends_when_its_budget_is_spent_and_every_waiting_trial_learns_of_it(
    tmp_path: Path, budget: dict[str, Any], reason: str
) -> None:
    from rich.console import Console

    from sfumato.runtime.sweep.progress import Progress
    from sfumato.runtime.sweep.screen import Screen
    from sfumato.runtime.sweep.stop import SweepStopper
    from sfumato.runtime.sweep.sweep_plan import SweepPlan

    journal = _told(tmp_path / "journal.jsonl", [1.0, 2.0, 3.0, 4.0, 5.0])
    journal.add("time", seconds=61.0)  # of an earlier call
    plan = SweepPlan({"name": "n"}, str(tmp_path), str(tmp_path), "train/d/loss", "min", "", {})
    with (tmp_path / "screen").open("w") as file:
        screen = Screen(Console(file=file), plan, journal, [], 5)
        stopper = SweepStopper(plan, settings(budget=budget).budget, Progress(plan, journal, screen, "none"))
        assert stopper.stop_all() == bool(reason)
    assert stopper.reason == reason
    assert plan.stop_file.exists() == bool(reason)
    assert not stopper("id", {"images": 1, "objective": 1.0})
    assert stopper("id", {"missing": ["train/d/loss"]}) and stopper.missing == ["train/d/loss"]


@pytest.mark.parametrize(
    ("metric", "mode", "expected"),
    [
        ("eval/fd_classifier", "auto", "min"),
        ("eval_500/precision", "auto", "max"),
        ("eval/class_accuracy", "auto", "max"),
        ("eval/fd_classifier", "max", "max"),
        ("train/denoise/loss", "auto", "min"),
    ],
)
def test_which_values_are_better_is_what_the_metric_says(metric: str, mode: str, expected: str) -> None:
    assert prepare.mode_of(settings(metric=metric, mode=mode)) == expected


def test_a_metric_that_nobody_knows_needs_a_mode() -> None:
    with pytest.raises(ConfigError, match=r"tune\.mode: set min or max"):
        prepare.mode_of(settings(metric="eval/of_my_own"))

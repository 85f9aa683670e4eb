"""Sweeps on a real cluster: every trial a real training run, as the scheduler and the user see it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_recipe import tiny_recipe

from sfumato import recipe as recipes
from sfumato.errors import ConfigError
from sfumato.families.diffusion import Config
from sfumato.runtime.runs.display import Display
from sfumato.runtime.runs.run_folder import RunFolder
from sfumato.runtime.sweep import sweep
from sfumato.tracking.config import TrackingSettings
from sfumato.tracking.runs import list_runs
from sfumato.training.checkpoint import complete
from sfumato.training.store import LocalStore
from sfumato.tuning.journal import Journal

LR = "model.optimizer.lr.peak"
IMAGES = 6_144
TIMEOUT_S = 600
WATCH_S = 0.1
FREE_S = 20


def content(data: Path, **tune: Any) -> dict[str, Any]:
    """A recipe as plain data: the smallest network on the digits, and a sweep over its learning rate."""
    train = {
        "images": IMAGES,
        "log_every": 1_024,
        "max_skipped_steps": 0,
        "checkpoint": {"every": 2_048},
    }
    return tiny_recipe(
        data,
        family=Config,
        seed=0,
        data={"read_tasks": 1},
        model={"optimizer": {"lr": {"peak": 4e-3, "warmup_images": 0, "decay": "constant"}}},
        train=train,
        tune={"metric": "train/denoise/loss", **tune},
    )


def grid(*rates: float) -> dict[str, Any]:
    return {"search": {"kind": "grid"}, "space": {LR: {"grid": rates}}}


@contextmanager
def watching(folder: Path, seen: list[tuple[bool, float]]) -> Iterator[None]:
    """Every WATCH_S: whether the journal tells of a stopped trial, and how many CPUs nobody holds."""
    import ray

    end = threading.Event()

    def watch() -> None:
        while not end.wait(WATCH_S):
            text = "".join(path.read_text() for path in folder.glob("runs/*/journal.jsonl"))
            seen.append(("stopped" in text, ray.available_resources().get("CPU", 0.0)))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_bad_trials_are_stopped_and_failed_ones_told_while_the_sweep_goes_on(
    digits_data: Path, tmp_path: Path
) -> None:
    import ray

    asha = {"kind": "asha", "grace": 2_048, "reduction": 2}
    given = content(digits_data, **grid(1e-9, 1e30), scheduler=asha, retries=0)
    seen: list[tuple[bool, float]] = []
    with watching(tmp_path, seen):
        result = sweep.run(given, display=Display(), root=tmp_path)

    first, slow, diverged = result["trials"]
    assert [first["status"], slow["status"], diverged["status"]] == ["finished", "stopped", "failed"]
    assert first["images"] == IMAGES and slow["images"] == 2_048
    assert "not finite" in diverged["reason"]
    assert result["stopped_early"] == pytest.approx(1 / 3, abs=1e-3)
    # Stopped, a trial holds nothing within seconds: before the next one takes its place, all CPUs are free.
    total = ray.cluster_resources()["CPU"]
    since = next(when for when, (stopped, _) in enumerate(seen) if stopped)
    assert total in [free for _, free in seen[since : since + int(FREE_S / WATCH_S)]]
    assert min(free for _, free in seen[:since]) < total

    best = recipes.load(result["best"]["recipe"])
    assert result["best"]["trial"] == 0 and best.model.optimizer.lr.peak == 4e-3  # type: ignore[attr-defined]
    assert (Path(result["best"]["run"]) / "model").is_dir()

    runs = list_runs(TrackingSettings(), root=tmp_path)
    parent = next(run for run in runs if run.run_id == result["mlflow_run_id"])
    children = {run.tags["sfumato.trial"]: run for run in runs if run is not parent}
    assert {run.tags["mlflow.parentRunId"] for run in children.values()} == {parent.run_id}
    assert [children[n].tags["sfumato.best"] for n in "012"] == ["true", "false", "false"]
    assert [children[n].status for n in "012"] == ["FINISHED", "FINISHED", "FAILED"]
    assert children["1"].tags["sfumato.reason"] == "asha at 2,048 images"
    assert children["0"].metrics["train/denoise/loss"] == pytest.approx(first["value"])

    again = sweep.run(given, display=Display(), root=tmp_path, resume=True)
    assert again["trials"] == result["trials"], "nothing is left to do"
    with pytest.raises(ConfigError, match="--resume resumes it"):
        sweep.run(given, display=Display(), root=tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_metric_that_is_never_reported_ends_the_sweep_at_the_first_report(
    digits_data: Path, tmp_path: Path
) -> None:
    given = content(digits_data, **grid(1e-3), metric="train/denoise/los")
    with pytest.raises(ConfigError, match="train/denoise/loss") as error:
        sweep.run(given, display=Display(), root=tmp_path)
    assert error.value.problems[0].startswith(
        "tune.metric: 'train/denoise/los' is never reported; there are: "
    )


def test_impossible_trials_are_refused_before_any_starts(digits_data: Path, tmp_path: Path) -> None:
    cases = [
        (
            {"model.network.chanels": {"grid": [[8, 16]]}},
            r"model\.network\.chanels: unknown key; did you mean",
        ),
        ({"train.batch": {"grid": [64, 100]}}, r"train\.batch"),
        ({"model.network.channels": {"grid": [[8, 16], [8, 12]]}}, r"model\.network"),
        ({LR: {"uniform": [1e-4, 1e-3]}}, "a grid needs values that can be counted"),
        ({"evaluate.samples": {"grid": [10, 20]}}, "cannot be searched"),
        ({LR: {"grid": [1e-3], "when": {LR: 1e-3}}}, "form a circle"),
    ]
    for space, message in cases:
        given = content(digits_data, space=space, search={"kind": "grid"})
        with pytest.raises(ConfigError, match=message):
            sweep.run(given, display=Display(), root=tmp_path)
    pbt = {"scheduler": {"kind": "pbt", "every": 2_048}, "trials": 2, "concurrency": 2}
    given = content(digits_data, space={"model.network.channels": {"choice": [[8, 16], [16, 32]]}}, **pbt)
    with pytest.raises(ConfigError, match="changes the networks, and pbt passes weights"):
        sweep.run(given, display=Display(), root=tmp_path)
    late = {"scheduler": {"kind": "asha", "grace": 512}, "trials": 2}
    with pytest.raises(ConfigError, match=r"the metric comes every train\.log_every=1,024"):
        sweep.run(
            content(digits_data, space={LR: {"choice": [1e-3]}}, **late), display=Display(), root=tmp_path
        )
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_the_worst_of_a_population_goes_on_from_the_weights_of_the_best(
    digits_data: Path, tmp_path: Path
) -> None:
    given = content(
        digits_data,
        space={LR: {"loguniform": [1e-12, 1e-11]}},
        scheduler={"kind": "pbt", "every": 2_048, "resample": 0.0, "quantile": 0.5},
        trials=2,
        concurrency=2,
    )
    given["train"]["images"] = 8 * 2_048  # neither ends before the other has begun
    result = sweep.run(given, display=Display(), root=tmp_path)
    good, bad = result["trials"]
    assert good["weights_from"] == [] and bad["weights_from"] and set(bad["weights_from"]) == {0}
    assert {good["status"], bad["status"]} == {"finished"}
    # Its own learning rate would not have moved its weights at all.
    curves = Journal(Path(result["folder"]) / sweep.JOURNAL).trials
    assert bad["value"] < 0.9 * curves[1].reports[0].value
    folder = RunFolder(next((Path(result["folder"]) / "trials").glob("*-001")))
    assert (
        complete(LocalStore(folder.checkpoints))[0].manifest.recipe_digest
        == recipes.load(folder.path / "recipe.yaml").digest()
    )


@pytest.mark.slow
def test_a_sweep_whose_driver_was_killed_goes_on(digits_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(content(digits_data, **grid(2e-3))))
    command = [sys.executable, "-m", "sfumato", "tune", str(path), "train.images=8_192"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    with (tmp_path / "log").open("wb") as log:
        first = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stderr=log, stdout=log, start_new_session=True
        )
        end = time.monotonic() + TIMEOUT_S
        checkpoint: list[Path] = []
        while not checkpoint:
            assert first.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < end
            time.sleep(0.2)
            checkpoint = list(tmp_path.glob("runs/*/trials/*-001/checkpoints/*/manifest.json"))
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    journal = next(tmp_path.glob("runs/*/journal.jsonl"))
    before = Journal(journal).trials
    assert [before[0].status, before[1].status] == ["finished", "running"]

    done = subprocess.run(
        [*command, "--resume", "--json"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [trial["status"] for trial in result["trials"]] == ["finished", "finished"]
    assert Journal(journal).trials[0] == before[0]
    log_text = next(journal.parent.glob("trials/*-001/logs/trial.txt")).read_text()
    assert "training resumes from the checkpoint at" in log_text
    runs = list_runs(TrackingSettings(), root=tmp_path)
    assert len(runs) == 3 and {run.status for run in runs} == {"FINISHED"}

"""A pipeline whose driver is killed, or that is told to stop, goes on with the same command."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml
from mlflow import MlflowClient
from repository import DIGITS
from waiting import wait_for

from sfumato.families.flow import Config

pytestmark = pytest.mark.slow
IMAGES = 20_096
TIMEOUT_S = 600


def write(folder: Path) -> None:
    recipe = {
        "base": str(DIGITS),
        "name": "tiny",
        "model": Config.tiny().model_dump(mode="json"),
        "train": {"images": IMAGES, "preview_samples": 0, "log_every": 512, "checkpoint": {"every": 1_024}},
        "parallel": {"strategy": "single", "workers": 1},
    }
    stages = {
        "images": {"kind": "pack", "source": {"kind": "digits"}, "dest": "data/digits"},
        "model": {"kind": "train", "recipe": "tiny.yaml", "set": {"data.path": "${images.data}"}},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "pipeline.yaml").write_text(yaml.safe_dump({"name": "killed", "stages": stages}))


def start(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sfumato", "run", "pipeline.yaml", "--json"]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_the_next_call_goes_on(sign: signal.Signals, tmp_path: Path) -> None:
    write(tmp_path)
    first = start(tmp_path)
    pattern = "runs/tiny-*/checkpoints/images-*/manifest.json"
    wait_for("a checkpoint", lambda: list(tmp_path.glob(pattern)), process=first)
    left = psutil.Process(first.pid).children(recursive=True)
    first.send_signal(sign)
    out, err = first.communicate(timeout=600)
    assert first.returncode == (130 if sign == signal.SIGINT else -signal.SIGKILL), err
    if sign == signal.SIGINT:
        assert out == "" and "interrupted" in err.splitlines()[-1] and "Traceback" not in err
    psutil.wait_procs(left, timeout=240)  # Ray's agents look a minute long for the server that is gone
    # A zombie has ended; whoever adopted it has not looked yet.
    alive = [process for process in left if process.is_running() and process.status() != "zombie"]
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    assert not alive, "what a call started ends with it"
    (run,) = tmp_path.glob("runs/tiny-*")
    assert not (run / "stages" / "train.json").exists(), "it was interrupted in the middle"

    second = start(tmp_path)
    out, err = second.communicate(timeout=TIMEOUT_S)
    assert second.returncode == 0, err
    stages = json.loads(out)["stages"]
    assert stages["images"]["state"] == "done before" and stages["model"]["outputs"]["images"] >= IMAGES
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    steps = [
        m.step
        for m in client.get_metric_history(
            stages["model"]["outputs"]["mlflow_run_id"], "train/likelihood/loss"
        )
    ]
    assert steps == sorted(set(steps)) and len(steps) > IMAGES / 1_100
    (experiment,) = (e for e in client.search_experiments() if e.name == "sfumato")
    names = sorted(run.info.run_name for run in client.search_runs([experiment.experiment_id]))
    assert names == ["killed", "killed-images", "tiny"], "both calls are one run"

"""An unfinished run of version 0.1 is resumed to the weights of then; a record that is gone is made anew."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from rich.console import Console
from safetensors.torch import load_file

from sfumato import recipe as recipes
from sfumato.errors import ConfigError
from sfumato.runtime.commands import stages
from sfumato.runtime.commands.new_record import record_again
from sfumato.runtime.runs.display import Display
from sfumato.runtime.runs.session import open_session

OLD = Path(__file__).parents[1] / "data" / "runs-0.1"
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
"""The instructions of the machine that made the data: with others, rounding errors grow in training."""
SAME_ARITHMETIC = "AVX" in torch.backends.cpu.get_cpu_capability() and torch.__version__.startswith("2.13.0")
"""Whether results of the machine that made the data are expected to the last bit."""
EarlierRun = Callable[[str, Path], Path]


def test_an_unfinished_run_ends_with_the_weights_of_then_and_without_mlflow(
    earlier_run: EarlierRun, tmp_path: Path
) -> None:
    """`sfumato run` with tracking off, where importing MLflow would fail in every process."""
    run = earlier_run("interrupted", tmp_path)
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "mlflow.py").write_text("raise SystemError('MLflow was imported')\n")
    paths = [str(blocked), str(Path(recipes.__file__).parents[1])]
    done = subprocess.run(
        [sys.executable, "-m", "sfumato", "run", "recipe.yaml", "tracking.enabled=false", "--json"],
        cwd=tmp_path,
        env={**os.environ, **AVX2, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "checkpoint at 320 images" in done.stderr and "tracking is off" in done.stderr
    result = json.loads(done.stdout)
    assert result["folder"] == str(run) and result["mlflow_run_id"] is None and result["register"] == {}
    assert result["train"]["resumed_from"] == 320
    now, then = (load_file(at / "model" / "ema.safetensors") for at in (run, *(OLD / "runs").iterdir()))
    assert now.keys() == then.keys()
    for name, weights in now.items():
        exact = {"rtol": 0.0, "atol": 0.0} if SAME_ARITHMETIC else {"rtol": 1e-3, "atol": 1e-4}
        torch.testing.assert_close(weights, then[name], **exact)
    (evaluation,) = (OLD / "runs").glob("*/evaluation")
    before, report = (json.loads((at / "report.json").read_text()) for at in (evaluation, run / "evaluation"))
    # The figures are others: of samples without the noise that the DDIM of then left after 3 steps, and of a
    # classifier that does not find such digits good (recall 0.81 then).
    assert report["metrics"].keys() == before["metrics"].keys()
    assert report["features"]["classifier"] != before["features"]["classifier"]
    assert result["evaluate"]["metrics"] == report["metrics"]
    assert not (tmp_path / "mlflow.db").exists()


def test_a_run_whose_record_is_gone_is_recorded_anew(
    earlier_run: EarlierRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where MLflow, too, looks for the store of a project
    run = earlier_run("runs", tmp_path)
    recipe = recipes.load(tmp_path / "recipe.yaml")
    display = Display(Console(quiet=True))
    gone = json.loads((run / "run.json").read_text())["mlflow_run_id"]
    with (
        pytest.raises(ConfigError, match=f"run {gone} is not in .*--new-record keeps the run"),
        open_session(recipe, display, root=tmp_path),
    ):
        raise AssertionError("it was opened")
    with open_session(recipe, display, root=tmp_path, new_record=True) as session:
        record_again(session)
        assert stages.train(session)["images"] == 1_280
        assert stages.evaluate(session)["samples"] == 48
        assert stages.register(session) == {"name": "digits-old", "version": 1}, "in a registry that is new"
        made = session.tracker.run_id
    known = json.loads((run / "run.json").read_text())
    assert made == known["mlflow_run_id"] != gone and known["recipe_digest"] == session.recipe.digest()
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (point,) = client.get_metric_history(made, "eval/fd_classifier")
    report = json.loads((run / "evaluation" / "report.json").read_text())
    assert (point.step, point.value) == (1_280, report["metrics"]["fd_classifier"])
    found = client.get_run(made)
    assert found.data.params["train.images"] == "1280" and found.info.status == "FINISHED"
    assert "evaluation/report.json" in [item.path for item in client.list_artifacts(made, "evaluation")]

    client.delete_run(made)  # which MLflow only marks
    with pytest.raises(ConfigError, match="--new-record"), open_session(recipe, display, root=tmp_path):
        raise AssertionError("it was opened")
    with open_session(recipe, display, root=tmp_path, new_record=True) as session:
        record_again(session)
        assert stages.register(session)["version"] == 1, "the registry still has it"
        assert session.tracker.run_id not in (made, gone)

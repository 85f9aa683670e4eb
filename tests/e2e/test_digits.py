"""The commands of the README, one after the other, on the digits with the smallest network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from repository import DIGITS

import sfumato
from sfumato.data.format.manifest import Manifest
from sfumato.families.diffusion import Config
from sfumato.runtime.runs.targets import model_of
from sfumato.sampling.model_files import read_card

RECIPE = DIGITS
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "hunter2-of-the-bucket",
    "HF_TOKEN": "hunter2-of-the-hub",
    "MLFLOW_TRACKING_PASSWORD": "hunter2-of-the-server",
}


PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
ODD = {**dict.fromkeys(PROXIES, "http://127.0.0.1:9"), "LANG": "C", "NO_COLOR": "1", "COLUMNS": "40"}
"""Forty columns without colours, in no language, behind proxies that do not answer; HOME is unset, too."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder as a user has it: a recipe on ours, and nothing else."""
    folder = tmp_path_factory.mktemp("project")
    tiny = Config.tiny().model_dump(mode="json")
    content = {
        "base": os.path.relpath(RECIPE, folder),
        "name": "tiny",
        "model": tiny,
        "train": {"images": 2_048, "preview_every": 1_024, "checkpoint": {"every": 1_024}},
        "evaluate": {
            "samples": 130,
            "feature_options": {"classifier": {"seen": 2_000}},
        },
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(content))
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def run(project: Path) -> dict:
    """What `sfumato run` reports, in odd surroundings."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("HOME", "no_proxy", "NO_PROXY") and not name.startswith("LC_")
    }
    done = subprocess.run(
        [sys.executable, "-m", "sfumato", "run", "tiny.yaml", "--json"],
        cwd=project,
        env={**kept, **ODD, **SECRETS},
        capture_output=True,
        text=True,
        timeout=700,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not any(secret in done.stdout + done.stderr for secret in SECRETS.values())
    for stage in ("pack", "train", "evaluate", "register"):
        assert f"✓ {stage}: " in done.stderr
    noise = [
        line
        for line in done.stderr.splitlines()
        if not line.startswith(
            ("✓", "pack:", "start of Ray: ", "train:", "evaluate:", "evaluate, ", "register:")
        )
        and "on 1 cores: workers take turns" not in line  # true of a machine with one
    ]
    assert noise == [], "the progress is not buried under what libraries say"
    assert "\x1b" not in done.stdout + done.stderr, "no colours"
    return json.loads(done.stdout)


@pytest.fixture
def call(run: dict, sfumato_here):
    """A command in this process: (status, standard output, standard error)."""
    return sfumato_here


def test_the_run_leaves_everything_behind(run: dict, project: Path) -> None:
    assert run["train"]["images"] == 2_048 and run["train"]["steps"] == 16
    assert {"fd_classifier", "precision", "recall", "class_accuracy"} == run["evaluate"]["metrics"].keys()
    folder = Path(run["folder"])
    assert sorted(path.name for path in (folder / "previews").iterdir()) == [
        "images-000000000000.png",
        "images-000000001024.png",
        "images-000000002048.png",
    ]
    with Image.open(run["grid"]) as grid:
        assert min(grid.size) > 100
    assert len(list((folder / "checkpoints").iterdir())) == 2
    os.umask(umask := os.umask(0))
    for path in folder.rglob("*"):
        asked = 0o777 if path.is_dir() else 0o666
        assert path.stat().st_mode & 0o777 == asked & ~umask, f"{path} has modes of its own"


def test_no_file_holds_a_secret_of_the_surroundings(run: dict, project: Path) -> None:
    """Logs of Ray and of the workers, run.json, the database of MLflow, its artifacts, the checkpoints."""
    files = [path for path in project.rglob("*") if path.is_file()]
    assert {"mlflow.db", "run.json", "raylet.out"} <= {path.name for path in files}
    for path in files:
        content = path.read_bytes()
        assert not any(secret.encode() in content for secret in SECRETS.values()), path


def test_mlflow_has_curves_pictures_params_data_and_the_model(run: dict, project: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    record = client.get_run(run["mlflow_run_id"])
    assert record.info.status == "FINISHED"
    assert record.data.params["train.images"] == "2048"
    assert record.data.params["model.objective.timesteps"] == "20"
    curve = client.get_metric_history(run["mlflow_run_id"], "train/denoise/loss")
    assert [point.step for point in curve] == [1_024, 2_048], "a checkpoint logs first"
    assert record.data.metrics["eval/precision"] == run["evaluate"]["metrics"]["precision"]
    assert record.inputs.dataset_inputs[0].dataset.name == "digits"
    names = {artifact.path for artifact in client.list_artifacts(run["mlflow_run_id"])}
    assert {"recipe.yaml", "environment.json", "images", "evaluation"} <= names
    steps = {a.path.split("+")[2] for a in client.list_artifacts(run["mlflow_run_id"], "images")}
    assert steps == {"0", "1024", "2048"}
    assert client.get_model_version("tiny", "1").run_id == run["mlflow_run_id"]


def test_the_same_command_skips_what_is_done(call) -> None:
    status, out, err = call("run", "tiny.yaml", "--json")
    assert status == 0
    assert err.count("done before") == 3
    status, again, _ = call("evaluate", "tiny", "--actors", "0", "--json")
    assert json.loads(again)["evaluate"] == json.loads(out)["evaluate"]


def test_sample_gives_the_same_bytes_whatever_the_batch_size(call, project: Path) -> None:
    request = [
        "--num",
        "70",
        "--label",
        "7",
        "--guidance",
        "2",
        "--sampler",
        "ddim",
        "--steps",
        "4",
        "--seed",
        "1",
    ]
    for out, size in (("one", "1"), ("many", "500")):
        status, said, err = call("sample", "tiny", *request, "--batch-size", size, "--out", out, "--json")
        assert status == 0, err
        assert json.loads(said)["images"] == 70
    files = sorted(path.name for path in (project / "one").iterdir())
    assert len(files) == 72
    for name in files:
        assert (project / "one" / name).read_bytes() == (project / "many" / name).read_bytes(), name
    line = json.loads((project / "one" / "samples.jsonl").read_text().splitlines()[7])
    assert line["index"] == 7 and line["label"] == 7 and line["options"]["guidance"] == 2
    status, _, err = call("sample", "tiny", "--num", "1", "--out", "one")
    assert status == 2 and "one" in err and "--overwrite" in err


def test_python_and_command_line_draw_the_same(run: dict, call, project: Path) -> None:
    assert call("sample", "tiny", "--num", "3", "--seed", "5", "--out", "three")[0] == 0
    images = sfumato.load(Path(run["folder"]) / "model").sample(3, seed=5)
    for number, image in enumerate(images):
        with Image.open(project / "three" / f"{number:06d}.png") as stored:
            assert np.array_equal(np.asarray(stored), image[..., 0])


def test_a_checkpoint_can_be_sampled(run: dict, call, project: Path) -> None:
    newest = max((Path(run["folder"]) / "checkpoints").iterdir())
    assert call("sample", str(newest), "--num", "3", "--seed", "5", "--out", "from-checkpoint")[0] == 0
    assert call("sample", "tiny", "--num", "3", "--seed", "5", "--out", "from-run")[0] == 0
    for name in ("000000.png", "000002.png"):
        ours, theirs = project / "from-checkpoint" / name, project / "from-run" / name
        assert ours.read_bytes() == theirs.read_bytes()


def test_models_of_runs_and_checkpoints_name_their_data(run: dict, project: Path) -> None:
    folder = Path(run["folder"])
    wanted = Manifest.load(project / "data" / "digits").digest
    for target in (folder, *(folder / "checkpoints").iterdir()):
        with model_of(str(target), root=project) as found:
            assert read_card(found.model)[0]["trained_on"] == wanted, target


def test_a_checkpoint_in_mid_training_is_measured_at_its_images(run: dict, call, project: Path) -> None:
    from mlflow import MlflowClient

    oldest, newest = sorted((Path(run["folder"]) / "checkpoints").iterdir())
    flags = ("--samples", "130", "--actors", "0", "--json")
    status, out, err = call("evaluate", str(oldest), *flags)
    assert status == 0, err
    found = json.loads(out)
    assert found["metrics"].keys() == run["evaluate"]["metrics"].keys()
    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    curve = {p.step: p.value for p in client.get_metric_history(run["mlflow_run_id"], "eval/recall")}
    assert curve == {1_024: found["metrics"]["recall"], 2_048: run["evaluate"]["metrics"]["recall"]}
    last = json.loads(call("evaluate", str(newest), *flags)[1])
    assert last["metrics"] == run["evaluate"]["metrics"], "the last checkpoint is the trained model"
    compared = json.loads(call("compare", "tiny", last["folder"], "--json", "--out", "page.html")[1])
    assert compared["metrics"]["recall"][run["run"]]["p_against_best"] in (None, 1.0)
    assert (project / "page.html").read_text().count("<svg") >= 2, "with the run's learning curves"


def test_export_loads_in_diffusers_and_draws_the_same(
    run: dict, call, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import DiffusionPipeline
    from diffusers.utils import constants, dynamic_modules_utils

    for module in (constants, dynamic_modules_utils):
        monkeypatch.setattr(module, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    assert call("export", "tiny", "exported", "--format", "diffusers")[0] == 0
    pipeline = DiffusionPipeline.from_pretrained(str(project / "exported"), trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    from sfumato.core.rng import SampleRng

    generator = sfumato.load(Path(run["folder"]) / "model")
    options = generator.options()
    found = pipeline(
        class_labels=[number % 10 for number in range(64)],
        guidance_scale=options.guidance,
        num_inference_steps=options.steps,
        generator=SampleRng(0, range(64)).generators,
        output_type="np",
    ).images
    expected = generator.sample(64, seed=0)
    assert np.abs((np.asarray(found) * 255).round() - expected).max() <= 1
    assert call("export", "tiny", "exported")[0] == 2, "it exists"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["sample", "tyni", "--out", "x"], "tiny"),
        (["sample", "tiny", "--label", "seven", "--out", "x"], "is not a class of this model"),
        (["sample", "tiny", "--option", "stepz=3", "--out", "x"], "steps"),
        (["sample", "tiny", "--steps", "99", "--out", "x"], "20"),
        (["evaluate", "tiny", "evaluate.metrics=precison"], "precision"),
        (["evaluate", "tiny", "evaluate.samples=1"], "must be at least 2"),
    ],
)
def test_bad_requests_get_one_line(arguments: list[str], expected: str, call, project: Path) -> None:
    status, out, err = call(*arguments)
    assert status == 2 and out == "" and "Traceback" not in err
    errors = [line for line in err.splitlines() if "error:" in line]
    assert len(errors) == 1 and expected in errors[0], err
    assert not (project / "x").exists()


def test_torch_is_left_as_it_was(run: dict) -> None:
    """Loading and sampling leave the global generator alone."""
    before = torch.random.get_rng_state()
    sfumato.load(Path(run["folder"]) / "model").sample(1)
    assert torch.equal(before, torch.random.get_rng_state())


def test_measuring_by_other_settings_leaves_the_run_as_it_is(run: dict, call) -> None:
    folder = Path(run["folder"])
    before = (folder / "recipe.yaml").read_bytes()
    status, out, err = call("evaluate", "tiny", "--samples", "64", "--actors", "0", "--json")
    assert status == 0, err
    assert json.loads(out)["evaluate"]["samples"] == 64
    assert (folder / "recipe.yaml").read_bytes() == before
    status, out, _ = call("evaluate", "tiny", "--actors", "0", "--json")
    assert status == 0 and json.loads(out)["evaluate"]["samples"] == 130


def test_a_trained_model_takes_other_defaults_of_sampling_from_its_recipe(run: dict, call) -> None:
    changed = "model.sampling.steps=7"
    status, _, err = call("evaluate", "tiny", changed)
    assert status == 2 and "evaluate.sampling" in err
    status, out, err = call("run", "tiny.yaml", changed, "evaluate.actors=0", "--json")
    assert status == 0, err
    assert "model.sampling has changed" in err and "✓ train" in err and "done before" in err
    found = json.loads(out)
    assert found["folder"] == run["folder"] and found["register"]["version"] == 2
    assert found["evaluate"]["metrics"] != run["evaluate"]["metrics"]
    assert sfumato.load(Path(run["folder"]) / "model").options().steps == 7

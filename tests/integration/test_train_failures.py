"""A training run on Ray that loses workers and drivers ends with the weights of one that does not.

The reference is computed by plain processes without Ray (tests/parity/train_rank.py), so this also says that
Ray Train, Ray Data and the resumes in between change no bit.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from mlflow import MlflowClient
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))
from launch import launch

from sfumato.families.diffusion import Config

TRAIN = {
    "images": 16_000,
    "batch": 128,
    "micro_batch": 64,
    "log_every": 1_000,
    "preview_samples": 0,
    "checkpoint": {"every": 2_000},
}
TIMEOUT_S = 600


def write_recipe(folder: Path, data: Path) -> Path:
    model = Config.tiny().model_dump(mode="json")
    model["optimizer"]["eps"] = 1e-5  # as the reference's ranks set it
    content = {
        "name": "tiny",
        "seed": 3,
        "storage": "runs",
        "data": {"path": str(data), "streams": 8, "shuffle_window": 100},
        "model": model,
        "train": TRAIN,
        "parallel": {"workers": 2, "threads_per_worker": 1},
        "tracking": {"system_metrics": False},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@contextmanager
def sfumato(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A command as a user starts it, in a process group of its own; whatever is left of it is ended."""
    command = [sys.executable, "-m", "sfumato", *arguments]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True, start_new_session=True)
    children: list[psutil.Process] = []
    process.left = children  # type: ignore[attr-defined]
    try:
        yield process
    finally:
        process.kill()
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()


def wait_for(what: str, found: Callable[[], object], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not found():
        assert process.poll() is None, f"ended before {what}: {process.stderr.read()}"
        assert time.monotonic() < end, f"no {what}"
        time.sleep(0.1)


def newest(folder: Path) -> int:
    """Images at the newest checkpoint that counts."""
    manifests = folder.glob("runs/tiny-*/checkpoints/images-*/manifest.json")
    return max((int(path.parent.name.split("-")[1]) for path in manifests), default=0)


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def reference(folder: Path, data: Path, **changes: object) -> dict[str, torch.Tensor]:
    """The weights of an undisturbed run of two plain processes."""
    train = {**TRAIN, **changes}
    return launch(
        folder / "calm", world_size=2, strategy="ddp", family="diffusion", data=str(data), train=train
    )


def assert_model_is(folder: Path, calm: dict[str, torch.Tensor]) -> None:
    """The run's exported weights are the reference's, bit for bit."""
    (model,) = folder.glob("runs/tiny-*/model")
    found = load_file(model / "ema.safetensors")
    assert len(found) == sum(name.startswith("ema/") for name in calm)
    for name, tensor in found.items():
        assert torch.equal(tensor, calm[f"ema/{name}"]), name


def test_a_lost_worker_changes_no_bit(digits_data: Path, tmp_path: Path) -> None:
    calm = reference(tmp_path, digits_data)
    with sfumato(tmp_path, "train", str(write_recipe(tmp_path, digits_data))) as process:
        wait_for("a checkpoint", lambda: newest(tmp_path) >= 4_000, process)
        workers(process)[0].send_signal(signal.SIGKILL)
        _, said = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, said
    assert "training goes on from the checkpoint at" in said and "Traceback" not in said
    assert_model_is(tmp_path, calm)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_lost_driver_and_ctrl_c_change_no_bit(digits_data: Path, tmp_path: Path) -> None:
    calm = reference(tmp_path, digits_data)
    recipe = str(write_recipe(tmp_path, digits_data))

    # The driver dies, and with it all that it started.
    with sfumato(tmp_path, "train", recipe) as process:
        wait_for("a checkpoint", lambda: newest(tmp_path) >= 4_000, process)
        process.left.extend(psutil.Process(process.pid).children(recursive=True))  # type: ignore[attr-defined]
        process.kill()
        process.wait()
    killed_at = newest(tmp_path)
    assert killed_at < 12_000, "the run was over before its driver died"

    # The same command goes on; ctrl-C stops it in an orderly way, and so does what batch systems send.
    for sign in (signal.SIGINT, signal.SIGTERM):
        before = newest(tmp_path)
        with sfumato(tmp_path, "train", recipe) as process:
            wait_for("a further checkpoint", lambda before=before: newest(tmp_path) > before, process)
            process.send_signal(sign)
            _, said = process.communicate(timeout=120)
        assert process.returncode == 130, said
        assert "training goes on from the checkpoint at" in said
        assert "interrupted" in said and "same command goes on" in said
        assert "Traceback" not in said and "***" not in said
    assert not list(tmp_path.glob("runs/*/model")), "an unfinished run has no model"

    with sfumato(tmp_path, "train", recipe) as process:
        _, said = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, said
    assert_model_is(tmp_path, calm)

    # Done is done: the same command again trains nothing.
    with sfumato(tmp_path, "train", recipe) as process:
        _, said = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0 and "done before" in said


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_full_disk_under_checkpoints_changes_no_bit(digits_data: Path, tmp_path: Path) -> None:
    """No file of the workers may grow beyond some kilobytes: writes fail as on a full disk."""
    calm = reference(tmp_path, digits_data, images=40_000)
    recipe = str(write_recipe(tmp_path, digits_data))
    with sfumato(tmp_path, "train", recipe, "train.images=40_000") as process:
        wait_for("a checkpoint", lambda: newest(tmp_path) >= 4_000, process)
        full = workers(process)
        before = [worker.rlimit(psutil.RLIMIT_FSIZE) for worker in full]
        for worker in full:
            worker.rlimit(psutil.RLIMIT_FSIZE, (4_000, before[0][1]))
        assert process.stderr is not None
        noted = next(line for line in process.stderr if "was not written" in line)
        good = newest(tmp_path)
        assert 4_000 <= good < 36_000, "the checkpoints before stay"
        for worker, limits in zip(full, before, strict=True):
            worker.rlimit(psutil.RLIMIT_FSIZE, limits)
        wait_for("a checkpoint with room again", lambda: newest(tmp_path) > good, process)
        _, said = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, said
    assert "the checkpoints before it stay, training goes on" in noted, noted
    assert "training goes on from the checkpoint" not in said, "no worker was lost"
    assert "Traceback" not in said
    assert_model_is(tmp_path, calm)


@pytest.mark.slow
def test_a_bad_sample_ends_the_run_at_once_with_one_line(digits_data: Path, tmp_path: Path) -> None:
    """An error that no retry would mend is not retried, and reaches the user as it is."""
    import shutil

    from sfumato.data.manifest import Manifest

    data = tmp_path / "data"
    shutil.copytree(digits_data, data)
    manifest = Manifest.load(data)
    shard = data / manifest.shards[0].name
    content = bytearray(shard.read_bytes())
    header = content.index(b"\x89PNG", len(content) // 2)
    content[header : header + 8] = b"GARBAGE!"
    shard.write_bytes(content)
    recipe = str(write_recipe(tmp_path, data))
    with sfumato(tmp_path, "train", recipe, "data.verify=size") as process:
        _, said = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 2, said
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and manifest.shards[0].name in errors[0] and "on_error" in errors[0], said
    assert "Traceback" not in said

    with sfumato(
        tmp_path, "train", recipe, "data.verify=size", "data.on_error=skip", "train.images=4096"
    ) as process:
        _, said = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, said
    (listed,) = tmp_path.glob("runs/tiny-*/skipped.json")
    assert manifest.shards[0].name in listed.read_text()
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    run = json.loads((listed.parent / "run.json").read_text())["mlflow_run_id"]
    assert "skipped.json" in {artifact.path for artifact in client.list_artifacts(run)}
    assert "1 samples could not be used" in said

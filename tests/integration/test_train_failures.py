"""A training run on Ray that loses workers and drivers ends with the weights of one that does not.

The reference is computed by plain processes without Ray (tests/support/train_rank.py), so this also says that
Ray Train, Ray Data and the resumes in between change no bit.
"""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from train_runs import (
    TIMEOUT_S,
    assert_model_is,
    newest,
    reference,
    sfumato,
    workers,
    write_recipe,
)
from waiting import wait_for


def test_a_lost_worker_changes_no_bit(digits_data: Path, tmp_path: Path) -> None:
    short: dict[str, Any] = {"images": 6_400, "checkpoint": {"every": 640}}
    calm = reference(tmp_path, digits_data, **short)
    recipe = str(write_recipe(tmp_path, digits_data, train=short))
    with sfumato(tmp_path, "train", recipe) as process:
        wait_for("a checkpoint", lambda: newest(tmp_path) >= 1_280, process=process)
        workers(process)[0].send_signal(signal.SIGKILL)
        _, said = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, said
    assert "training resumes from the checkpoint at" in said and "Traceback" not in said
    assert_model_is(tmp_path, calm)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("part", ["gcs_server", "DashboardAgent", "raylet/raylet"])
def test_a_part_of_the_cluster_is_killed_and_the_command_says_so(
    part: str, digits_data: Path, tmp_path: Path
) -> None:
    """Ray's core ends the process after some of these; it is spoken for all the same, in one line."""
    recipe = str(write_recipe(tmp_path, digits_data, train={"images": 4_000_000}))
    with sfumato(tmp_path, "train", recipe) as process:
        wait_for("a checkpoint", lambda: newest(tmp_path) >= 2_000, process=process)
        below = psutil.Process(process.pid).children(recursive=True)
        process.left.extend(below)  # type: ignore[attr-defined]
        next(child for child in below if part in " ".join(child.cmdline())).kill()
        _, said = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 1, said
        lines = [line for line in said.splitlines() if "error:" in line]
        assert len(lines) == 1 and "under" in lines[0] and "same command resumes" in lines[0], said
        assert "Traceback" not in said and "defect" not in said
        psutil.wait_procs(below, timeout=120)
        assert not [child for child in below if child.is_running()], "nothing of the cluster stays behind"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("part", "sign"),
    [("gcs_server", signal.SIGTERM), ("DashboardAgent", signal.SIGTERM), ("raylet/raylet", signal.SIGINT)],
)
def test_a_command_is_ended_while_ray_starts(
    part: str, sign: signal.Signals, digits_data: Path, tmp_path: Path
) -> None:
    """The whole process group is, as by `timeout`, as soon as a part is there. Ray's core must not abort."""
    recipe = str(write_recipe(tmp_path, digits_data))
    with sfumato(tmp_path, "train", recipe) as process:
        below: list[psutil.Process] = []

        def there() -> bool:
            below[:] = psutil.Process(process.pid).children(recursive=True)
            with suppress(psutil.NoSuchProcess):
                return any(part in " ".join(child.cmdline()) for child in below)
            return False

        wait_for(part, there, process=process)
        process.send_signal(sign)
        os.killpg(process.pid, sign)
        _, said = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130, said
    assert [line for line in said.splitlines() if "error:" in line] == said.splitlines()[-1:], said
    assert "interrupted" in said and "same command resumes" in said and "Traceback" not in said
    assert (sign == signal.SIGTERM) == (said.count("SIGTERM received") == 1)
    _, left = psutil.wait_procs(below, timeout=120)
    assert not [child for child in left if child.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_lost_driver_and_ctrl_c_change_no_bit(digits_data: Path, tmp_path: Path) -> None:
    calm = reference(tmp_path, digits_data)
    recipe = str(write_recipe(tmp_path, digits_data))

    # The driver dies, and with it all that it started.
    with sfumato(tmp_path, "train", recipe) as process:
        wait_for("a checkpoint", lambda: newest(tmp_path) >= 4_000, process=process)
        process.left.extend(psutil.Process(process.pid).children(recursive=True))  # type: ignore[attr-defined]
        process.kill()
        process.wait()
    killed_at = newest(tmp_path)
    assert killed_at < 12_000, "the run was over before its driver died"

    # The same command resumes; ctrl-C stops it in an orderly way, and so does what batch systems send.
    for sign in (signal.SIGINT, signal.SIGTERM):
        before = newest(tmp_path)
        with sfumato(tmp_path, "train", recipe) as process:
            wait_for(
                "a further checkpoint",
                lambda before=before: newest(tmp_path) > before,
                process=process,
            )
            process.send_signal(sign)
            _, said = process.communicate(timeout=600)
        assert process.returncode == 130, said
        assert "training resumes from the checkpoint at" in said
        assert "interrupted" in said and "same command resumes" in said
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
        wait_for("a checkpoint", lambda: newest(tmp_path) >= 4_000, process=process)
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
        wait_for(
            "a checkpoint with room again",
            lambda: newest(tmp_path) > good,
            process=process,
        )
        _, said = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, said
    assert "what was written before it stays, training continues" in noted, noted
    assert "training resumes from the checkpoint" not in said, "no worker was lost"
    assert "Traceback" not in said
    assert_model_is(tmp_path, calm)


@pytest.mark.slow
def test_a_run_that_is_deleted_in_mid_training_ends_with_one_line(digits_data: Path, tmp_path: Path) -> None:
    recipe = str(write_recipe(tmp_path, digits_data, train={"images": 4_000_000}))
    with sfumato(tmp_path, "train", recipe) as process:
        wait_for("a checkpoint", lambda: newest(tmp_path) >= 2_000, process=process)
        process.left.extend(psutil.Process(process.pid).children(recursive=True))  # type: ignore[attr-defined]
        (run,) = tmp_path.glob("runs/tiny-*")
        run.rename(tmp_path / "gone")  # at once, as a move; deleting may meet files that are being written
        _, said = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode in (1, 2), said
    errors = [line for line in said.splitlines() if "error:" in line]
    assert len(errors) == 1 and f"{run.name} is gone" in errors[0] and "Traceback" not in said, said


@pytest.mark.slow
def test_a_bad_sample_ends_the_run_at_once_with_one_line(digits_data: Path, tmp_path: Path) -> None:
    """An error that no retry would mend is not retried, and reaches the user as it is."""
    import shutil

    from sfumato.data.format.manifest import Manifest

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

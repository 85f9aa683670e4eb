"""The stack of infra/local, for real: it starts, asks for passwords, works, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from repository import ROOT

STACK = ROOT / "infra" / "local" / "stack.py"
pytestmark = pytest.mark.slow


def stack(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(STACK), command, "--folder", str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "platform")},
        capture_output=True,
        text=True,
        check=False,
    )


def environment(folder: Path) -> dict[str, str]:
    """The variables of the stack's file, as a shell reads them."""
    text = (folder / "env").read_text()
    return dict(re.findall(r"^export (\w+)=(.*)$", text, re.MULTILINE))


def processes(folder: Path) -> list[psutil.Process]:
    """All processes of the stack: the leaders of the groups, and what descends from them."""
    leaders = [
        int(re.search(r'"pid": (\d+)', path.read_text())[1]) for path in (folder / "run").glob("*.pid")
    ]  # type: ignore[index]
    found = [psutil.Process(pid) for pid in leaders]
    return found + [child for process in found for child in process.children(recursive=True)]


def answer(url: str, *, token: str | None = None) -> int:
    """The status of an answer to somebody with this token, or with none."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 - loopback
        return int(urllib.request.urlopen(request, timeout=600).status)  # noqa: S310
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    # Not under pytest's own, which is closed to the user that PostgreSQL runs as.
    path = Path(tempfile.mkdtemp(prefix="stack-test-"))
    path.chmod(0o711)
    started = stack("up", path)
    try:
        assert started.returncode == 0, started.stdout + started.stderr
        yield path
    finally:
        known = processes(path)
        stopped = stack("down", path)
    assert stopped.returncode == 0
    deadline = time.monotonic() + 600
    while left := [process for process in known if process.is_running() and process.status() != "zombie"]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)
    shutil.rmtree(path)


def test_all_of_it_runs_and_a_second_call_changes_nothing(folder: Path) -> None:
    done = stack("status", folder)
    assert done.returncode == 0 and "mlflow: up" in done.stdout and "ray-worker: down" in done.stdout
    before = sorted(process.pid for process in processes(folder))
    assert stack("up", folder).returncode == 0
    assert set(before) & {process.pid for process in processes(folder)} >= {
        int(pid) for pid in re.findall(r"process (\d+)", done.stdout)
    }


def test_nothing_listens_beyond_this_machine(folder: Path) -> None:
    addresses = {
        connection.laddr.ip
        for process in processes(folder)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert addresses and all(re.fullmatch(r"(::ffff:)?127\..*|::1", address) for address in addresses), (
        addresses
    )


def test_passwords_are_in_private_files_and_in_no_argument(folder: Path) -> None:
    secrets = re.findall(r'"\w+": "([^"]{16,})"', (folder / "settings.json").read_text())
    assert len(secrets) == 6
    arguments = " ".join(" ".join(process.cmdline()) for process in processes(folder))
    assert not [secret for secret in secrets if secret in arguments]
    for name in ("settings.json", "env", "ray-token", "mlflow/basic_auth.ini"):
        assert (folder / name).stat().st_mode & 0o077 == 0, name


def test_mlflow_keeps_runs_in_the_database_and_artifacts_in_the_object_store(folder: Path) -> None:
    script = """
import boto3, mlflow
mlflow.set_experiment("stack")
with mlflow.start_run() as run:
    mlflow.log_metric("loss", 0.5, step=100)
    mlflow.log_text("hello", "notes/a.txt")
print(mlflow.get_run(run.info.run_id).data.metrics["loss"])
print(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/notes/a.txt"))
found = boto3.client("s3").list_objects_v2(Bucket="sfumato")["Contents"]
print([item["Key"].rsplit("/", 1)[-1] for item in found])
"""
    variables = {**os.environ, **environment(folder)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=variables, capture_output=True, text=True, check=False
    )
    lines = done.stdout.splitlines()
    assert "0.5" in lines and "hello" in lines and "['a.txt']" in lines, done.stderr[-2000:]


def test_mlflow_lets_nobody_in_without_password(folder: Path) -> None:
    url = environment(folder)["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert answer(url) == 401


def test_ray_runs_what_has_the_token_and_prometheus_sees_the_run(folder: Path) -> None:
    script = """
import ray
ray.init(logging_level="ERROR", log_to_driver=False)
from sfumato.runtime.training import progress_actor as board
made = board.create("a-run")
made.progress.remote(640, 1000, {"train/images_per_second": 12.5})
print("images", ray.get(made.snapshot.remote()).images)
import json, re, time, urllib.request
ports = json.load(open("SETTINGS"))["ports"]
for _ in range(60):
    text = urllib.request.urlopen(f"http://127.0.0.1:{ports['head_metrics']}/metrics").read().decode()
    found = re.findall(r'^ray_sfumato_(\\w+)\\{[^}]*run="a-run"[^}]*\\} (\\S+)', text, re.MULTILINE)
    if found:
        break
    time.sleep(1)
print("metrics", sorted((name, float(value)) for name, value in found))
""".replace("SETTINGS", str(folder / "settings.json"))
    variables = {**os.environ, **environment(folder), "PYTHONPATH": str(ROOT / "platform")}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert "images 640" in done.stdout, done.stderr[-2000:]
    expected = [("images", 640.0), ("images_per_second", 12.5), ("images_total", 1000.0)]
    assert f"metrics {expected}" in done.stdout
    url = f"{variables['RAY_API_SERVER_ADDRESS']}/api/jobs/"
    assert answer(url, token="0" * 64) in (401, 403)
    assert answer(url) in (401, 403)
    assert answer(url, token=Path(variables["RAY_AUTH_TOKEN_PATH"]).read_text()) == 200

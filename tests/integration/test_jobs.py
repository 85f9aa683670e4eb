"""`sfumato submit` and `sfumato jobs` against a real Ray cluster with token authentication, on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from ray_nodes import free_port, listens, node
from waiting import wait_for

from sfumato.families.flow import Config

PLANTED = {
    "AWS_SECRET_ACCESS_KEY": f"planted-{secrets.token_hex(12)}",
    "MLFLOW_TRACKING_PASSWORD": f"planted-{secrets.token_hex(12)}",
    "DEPOT_TOKEN": f"planted-{secrets.token_hex(12)}",
}
FAMILY = """
from typing import Literal
from sfumato.families.flow import Config

class Mine(Config):
    family: Literal["mine.family:Mine"] = "mine.family:Mine"
"""
# Commands as a user gives them, one after the other in one process, since importing takes longest.
CONSOLE = """
import contextlib, io, json, os, sys
from sfumato import cli
from sfumato.runtime.cluster import private_cluster
import ray

for line in sys.stdin:
    asked = json.loads(line)
    os.environ.update(asked["env"])
    private_cluster.read_variables_again()
    sys.argv = ["sfumato", *asked["words"]]
    out, status = io.StringIO(), 0
    with open(asked["err"], "w", buffering=1) as err:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                cli.main()
            except SystemExit as left:
                status = left.code or 0
    print(json.dumps([status, out.getvalue()]), flush=True)
"""


@dataclass
class Answer:
    status: int
    out: str
    err: str


class Console:
    """A terminal in a folder of its own."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self._environment, self._err = folder, environment, folder / "stderr.txt"
        self.process = subprocess.Popen(
            [sys.executable, "-c", CONSOLE],
            cwd=folder,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *words: str, **environment: str) -> Answer:
        self.begin(*words, **environment)
        return self.end()

    def begin(self, *words: str, **environment: str) -> None:
        asked = {"words": words, "env": {**self._environment, **environment}, "err": str(self._err)}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()

    def end(self) -> Answer:
        assert self.process.stdout is not None
        status, out = json.loads(self.process.stdout.readline())
        return Answer(status, out, self.said())

    def said(self) -> str:
        return self._err.read_text() if self._err.exists() else ""

    def refused(self, *words: str, **environment: str) -> str:
        """The one line that a bad call gets."""
        answer = self(*words, **environment)
        assert answer.status == 2, answer
        assert answer.out == "" and "Traceback" not in answer.err
        assert answer.err.startswith("error:") and answer.err.count("\n") == 1, answer.err
        return answer.err


@dataclass
class Head:
    """A running head; `folder` holds all that Ray writes."""

    address: str
    folder: Path
    token: Path
    pid: int


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    # The paths of Ray's sockets have at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="sfumato-"))
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text(secrets.token_hex(32))
    port, dashboard = free_port(), free_port()
    environment = {
        **PLANTED,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_enable_metrics_collection": "0",
    }
    arguments = ("--head", f"--port={port}", "--num-cpus=4", f"--temp-dir={folder}")
    # The agent, which starts jobs, has a fixed port unless told otherwise: a second cluster would have none.
    agent = f"--dashboard-agent-listen-port={free_port()}"
    served = ("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", agent)
    try:
        with node(environment, folder / "ray-start.txt", *arguments, *served) as process:
            wait_for("dashboard", lambda: listens(dashboard), seconds=600)
            yield Head(f"http://127.0.0.1:{dashboard}", folder, token, process.pid)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def console(head: Head, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    environment = {
        **PLANTED,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(head.token),
        "RAY_API_SERVER_ADDRESS": head.address,
    }
    terminal = Console(tmp_path_factory.mktemp("project"), environment)
    yield terminal
    terminal.process.kill()
    terminal.process.wait()


@pytest.fixture(scope="module")
def recipe(console: Console, digits_data: Path) -> str:
    """A recipe in two files with a family of its own, which counts on the project's folder."""
    base = {
        "seed": 3,
        "data": {"path": str(digits_data), "streams": 8, "shuffle_window": 100},
        "model": {**Config.tiny().model_dump(mode="json"), "family": "mine.family:Mine"},
        "parallel": {"threads_per_worker": 1},
        "tracking": {"system_metrics": False, "tags": {"where": "${oc.env:DEPOT,nowhere}"}},
    }
    train = {"images": 512, "batch": 128, "log_every": 256, "preview_samples": 4, "preview_every": 256}
    (console.folder / "mine").mkdir()
    (console.folder / "mine" / "family.py").write_text(FAMILY)
    (console.folder / "bases").mkdir()
    (console.folder / "bases" / "base.yaml").write_text(yaml.safe_dump(base))
    tiny = {"base": "bases/base.yaml", "name": "tiny", "train": {**train, "checkpoint": {"every": 256}}}
    (console.folder / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    return "tiny.yaml"


def test_bad_calls_get_one_line(head: Head, console: Console, recipe: str, tmp_path: Path) -> None:
    assert "submit with --trust" in console.refused("submit", "--root", str(tmp_path), "--", "train", recipe)
    here = ("submit", "--trust", "--root", str(tmp_path), "--", "train", recipe)
    wrong = tmp_path / "wrong"
    wrong.write_text("0" * 64)
    assert "does not accept the token" in console.refused(*here, RAY_AUTH_TOKEN_PATH=str(wrong))
    said = console.refused(*here, RAY_AUTH_MODE="disabled")
    assert "asks for a token and none was given" in said and "RAY_AUTH_TOKEN_PATH" in said
    nobody = f"http://127.0.0.1:{free_port()}"
    assert f"no Ray cluster answers at {nobody}" in console.refused("jobs", "list", "--address", nobody)
    said = console.refused(*here, "parallel.gpus_per_worker=1")
    assert "1 training workers of 1 CPUs and 1 GPUs each are needed, and no node has room" in said
    assert "(4 CPUs)" in said, "what there is, is said too"
    assert "12 CPUs are needed" in console.refused(*here, "parallel.workers=4")
    assert "no job 'other'" in console.refused("jobs", "logs", "other")
    assert console("jobs", "list", "--json").out == "[]\n", "nothing was submitted"


def test_a_recipe_runs_on_the_cluster_and_no_secret_is_written(
    head: Head, console: Console, recipe: str, tmp_path: Path
) -> None:
    missing = console(
        "submit", "--trust", "--root", str(tmp_path), "--secret", "NOT_THERE", "--", "train", recipe
    )
    assert missing.status == 2, missing.err
    assert "environment variable NOT_THERE is not set on this cluster" in missing.err

    options = ("--trust", "--root", str(tmp_path), "--name", "first", "--env", "DEPOT=attic")
    renamed = ("--secret", "AWS_SECRET_ACCESS_KEY", "--secret", "HF_TOKEN=DEPOT_TOKEN")
    answer = console("submit", *options, *renamed, "--json", "--", "train", recipe, "train.images=640")
    assert answer.status == 0, answer.err
    assert "train: started" in answer.err and "job first is done" in answer.err, "the log was shown"
    assert json.loads(answer.out)["status"] == "SUCCEEDED"
    (run,) = (tmp_path / "runs").glob("tiny-*")
    assert (run / "model").is_dir() and (tmp_path / "mlflow.db").is_file(), "relative places are the root's"
    resolved = yaml.safe_load((run / "recipe.yaml").read_text())
    assert resolved["train"]["images"] == 640 and resolved["tracking"]["tags"]["where"] == "attic"

    assert "train: started" in console("jobs", "logs", "first").out
    listed = {job["name"]: job for job in json.loads(console("jobs", "list", "--json").out)}
    assert listed["first"]["command"] == f"train {recipe} train.images=640"
    assert "is taken" in console.refused("submit", *options, "--", "train", recipe)
    assert "has already ended" in console.refused("jobs", "stop", "first")

    assert list(head.folder.rglob("_ray_pkg_*")), "the package is among what is searched"
    for folder in (head.folder, tmp_path, console.folder):
        assert not list(holding(folder, PLANTED.values()))


def holding(folder: Path, words: Any) -> Iterator[Path]:
    """The files, of whatever kind, that hold one of the words."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            if any(word.encode() in content for word in words):
                yield path


def command_lines(pid: int) -> Iterator[str]:
    """What everybody on the machine can read of a process and all that it started."""
    for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        with contextlib.suppress(psutil.Error):  # it may end meanwhile
            yield " ".join(process.cmdline())


def test_detach_attach_and_stop(head: Head, console: Console, recipe: str, tmp_path: Path) -> None:
    words = (
        "submit",
        "--trust",
        "--root",
        str(tmp_path),
        "--detach",
        "--",
        "train",
        recipe,
        "train.images=50_000_000",
    )
    answer = console(*words)
    assert answer.status == 0, answer.err
    name = answer.out.split()[3]
    assert answer.out == f"sfumato jobs attach {name} --address {head.address}\n"
    said = console.refused(*words)
    assert f"job '{name}'" in said and "is working on this run already" in said

    console.begin("jobs", "attach", name)
    wait_for("log", lambda: "train: started" in console.said(), seconds=600)
    console.process.send_signal(signal.SIGINT)
    answer = console.end()
    assert answer.status == 130, answer.err
    assert answer.err.splitlines()[-1] == (
        f"detached; job {name} continues: sfumato jobs attach {name} --address {head.address}"
    )
    wait_for("checkpoint", lambda: list(tmp_path.glob("runs/*/checkpoints/*/manifest.json")), seconds=600)
    shown = "\0".join(command_lines(head.pid))
    assert "sfumato jobs start" in shown, "the job's processes are among them"
    assert not any(secret in shown for secret in PLANTED.values())

    assert console("jobs", "stop", name).status == 0
    answer = console("jobs", "attach", name)
    assert answer.status == 1 and f"job {name} was stopped" in answer.err
    assert "same command resumes" in console("jobs", "logs", name).out, "it ended as at ctrl-C"

"""Jobs on a cluster of two nodes with different resources go on when the node with the trainer is lost, and
are resumed by the same command when the head is.

A training, a pipeline and a sweep: each ends with what the same command makes at home, undisturbed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from ray_nodes import QUICK, free_port, node
from safetensors.torch import load_file
from tiny_evaluation import CLASSIFIER
from tiny_recipe import write_tiny_recipe
from waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ON_TRAINER = {"resources_per_worker": {"trainer": 1}}
TRAINER = '--resources={"trainer": 1}'


def sfumato(folder: Path, environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sfumato", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def checkpoints(endpoint: str, environment: dict[str, str]) -> Callable[[], list[str]]:
    """The manifests of the checkpoints that count, in the bucket."""
    from pyarrow import fs

    store = fs.S3FileSystem(
        access_key=environment["AWS_ACCESS_KEY_ID"],
        secret_key=environment["AWS_SECRET_ACCESS_KEY"],
        endpoint_override=endpoint,
    )
    place = fs.FileSelector("data/checkpoints", recursive=True, allow_not_found=True)
    return lambda: sorted(f.path for f in store.get_file_info(place) if f.base_name == "manifest.json")


def commands(tmp_path: Path, digits_data: Path, images: int = 60_000) -> dict[str, list[str]]:
    """What is submitted, by name; the same files serve at home, where no node has a trainer."""
    place = {"every": 4_000, "uri": "s3://data/checkpoints"}
    write_tiny_recipe(
        tmp_path,
        digits_data,
        train={"images": images, "checkpoint": place},
        parallel=ON_TRAINER,
        evaluate={"samples": 60, "actors": 0, "preview": 0, "feature_options": CLASSIFIER},
        data={"read_tasks": 1},
    )
    quality = {"kind": "evaluate", "run": "${model.run}"}
    model = {"kind": "train", "recipe": "tiny.yaml", "set": {"name": "staged"}}
    (tmp_path / "night.yaml").write_text(
        yaml.safe_dump({"name": "night", "stages": {"model": model, "quality": quality}})
    )
    space = {"model.optimizer.lr.peak": {"choice": [3e-3, 1e-2]}}
    tune = {"metric": "train/likelihood/loss", "search": {"kind": "grid"}, "baseline": False, "space": space}
    (tmp_path / "sweep.yaml").write_text(
        yaml.safe_dump({"base": "tiny.yaml", "name": "searched", "tune": tune, "evaluate": {"every": None}})
    )
    return {
        "train": ["train", "tiny.yaml"],
        "pipeline": ["run", "night.yaml"],
        "sweep": ["tune", "sweep.yaml"],
    }


@dataclass(frozen=True)
class Cluster:
    """Where its head listens, and the surroundings of nodes and commands; `plain` are those at home."""

    folder: Path
    port: int
    dashboard: int
    plain: dict[str, str]
    environment: dict[str, str]

    def head(self, *more: str) -> AbstractContextManager[Any]:
        words = ("--head", f"--port={self.port}", f"--dashboard-port={self.dashboard}")
        words += ("--dashboard-host=127.0.0.1", f"--dashboard-agent-listen-port={free_port()}")
        words += ("--node-ip-address=127.0.0.2", "--num-cpus=3", f"--temp-dir={self.folder}", *more)
        return node(self.environment, self.folder / "said.txt", *words)

    def trainer(self, address: str) -> AbstractContextManager[Any]:
        words = (f"--address=127.0.0.2:{self.port}", "--num-cpus=1", TRAINER, f"--node-ip-address={address}")
        return node(self.environment, self.folder / "said.txt", *words)


@pytest.fixture
def cluster(s3_server: Any, tmp_path: Path) -> Cluster:
    token = tmp_path / "token"
    token.write_text("a1" * 32)
    dashboard = free_port()
    plain = {**os.environ, **QUICK, **s3_server.environment, "AWS_ENDPOINT_URL": s3_server.endpoint}
    environment = {
        **plain,
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
    }
    folder = Path(tempfile.mkdtemp(prefix="sfumato-"))
    return Cluster(folder, free_port(), dashboard, plain, environment)


def until_sent(folder: Path, cluster: Cluster, words: list[str]) -> str:
    """The job, once the cluster has room for it."""
    submit = ("submit", "--root", str(folder / "shared"), "--detach", "--json", "--", *words)
    sent = wait_for(
        "job that there is room for",
        lambda: (answer := sfumato(folder, cluster.environment, *submit)).returncode == 0 and answer,
        seconds=600,
    )
    return str(json.loads(sent.stdout)["job"])


@pytest.mark.parametrize("name", ["train", "pipeline", "sweep"])
def test_the_node_with_the_trainer_is_lost_and_the_job_finishes(
    name: str, cluster: Cluster, s3_server: Any, digits_data: Path, tmp_path: Path
) -> None:
    words = commands(tmp_path, digits_data)[name]
    found = checkpoints(s3_server.endpoint, s3_server.environment)
    submit = ("submit", "--root", str(tmp_path / "shared"), "--detach", "--json", "--", *words)
    listing = ("jobs", "list")
    with cluster.head():
        wait_for(
            "head", lambda: sfumato(tmp_path, cluster.environment, *listing).returncode == 0, seconds=600
        )
        alone = sfumato(tmp_path, cluster.environment, *submit)
        assert alone.returncode == 2 and "1 CPUs and 1 trainer each are needed" in alone.stderr, alone.stderr
        assert ("stage model: 1 training workers" in alone.stderr) == (name == "pipeline")

        before = set(found())
        with cluster.trainer("127.0.0.3"):
            job = until_sent(tmp_path, cluster, words)
            wait_for("checkpoint in the bucket", lambda: set(found()) - before, seconds=300)
            (listed,) = json.loads(sfumato(tmp_path, cluster.environment, *listing, "--json").stdout)
            assert " images  " in listed["progress"] or " of 60,000  " in listed["progress"], listed
        # Its node is gone, and another one comes in its place.
        with cluster.trainer("127.0.0.4"):
            ended = sfumato(tmp_path, cluster.environment, "jobs", "attach", job)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    if name != "sweep":  # whose trials have logs of their own
        assert "training resumes from the checkpoint at" in ended.stderr
    assert results(tmp_path / "shared") == at_home(tmp_path, cluster, words)


@pytest.mark.parametrize("name", ["pipeline", "sweep"])
def test_the_head_is_lost_and_the_same_command_finishes(
    name: str, cluster: Cluster, s3_server: Any, digits_data: Path, tmp_path: Path
) -> None:
    """With the head, which trains too, Ray forgets its jobs; the job's own process ends with it."""
    words = commands(tmp_path, digits_data, images=30_000)[name]
    found = checkpoints(s3_server.endpoint, s3_server.environment)
    before = set(found())
    with cluster.head(TRAINER):
        until_sent(tmp_path, cluster, words)
        wait_for("checkpoint in the bucket", lambda: set(found()) - before, seconds=300)
    owners = [json.loads(file.read_text())["pid"] for file in tmp_path.rglob("owner.json")]
    wait_for("end of what ran there", lambda: not any(map(psutil.pid_exists, owners)), seconds=120)
    with cluster.head(TRAINER):
        job = until_sent(tmp_path, cluster, words)
        ended = sfumato(tmp_path, cluster.environment, "jobs", "attach", job)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert results(tmp_path / "shared") == at_home(tmp_path, cluster, words)


def at_home(folder: Path, cluster: Cluster, words: list[str]) -> dict[str, Any]:
    """What the same command makes here, undisturbed."""
    here = folder / "here"
    here.mkdir()
    for file in folder.glob("*.yaml"):
        content = yaml.safe_load(file.read_text())
        content.get("parallel", {}).pop("resources_per_worker", None)
        if "train" in content:
            content["train"]["checkpoint"].pop("uri")
        (here / file.name).write_text(yaml.safe_dump(content))
    calm = sfumato(here, {**cluster.plain, "RAY_AUTH_MODE": "disabled"}, *words)
    assert calm.returncode == 0, calm.stderr
    return results(here)


def results(root: Path) -> dict[str, Any]:
    """The weights of every model below the folder, and the figures of every evaluation."""
    found: dict[str, Any] = {}
    for file in sorted(root.rglob("model/ema.safetensors")):
        run = file.parents[1]
        name = run.name if run.parent.name == "trials" else run.name.rpartition("-")[0]
        found[name.rpartition("-")[2]] = {key: value.tolist() for key, value in load_file(file).items()}
        if (run / "evaluation" / "report.json").is_file():
            report = json.loads((run / "evaluation" / "report.json").read_text())
            found[f"{name} figures"] = report["metrics"]
    assert found
    return found

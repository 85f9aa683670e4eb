"""Elastic training on a cluster whose nodes come and go ends with the weights of an undisturbed process.

Two raylets on one machine, with a training worker each. The reference is computed by a plain process without
Ray (tests/support/train_rank.py). A family of the user's own paces the steps, which leaves time for nodes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import launch
from ray._raylet import GcsClient  # what `ray drain-node` uses
from ray.core.generated import autoscaler_pb2
from ray_nodes import QUICK, end_group, free_port, node
from repository import PLATFORM
from safetensors.torch import load_file
from tiny_recipe import LIKE_REFERENCE, write_tiny_recipe
from waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
# Of a group that does not fit any more, training starts again with what there is after so long.
TRAIN_QUICK = {
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1",
}
TRAIN = {"images": 32_000, "batch": 128, "micro_batch": 64, "log_every": 1_000, "preview_samples": 0}
PACED = """
import time
from pathlib import Path

from sfumato.families.flow.config import FlowConfig
from sfumato.families.flow.family import FlowFamily

PACE = Path(__file__).with_name("pace")


class Paced(FlowFamily):
    def prepare(self, nets, batch, progress, rng):
        time.sleep(float(PACE.read_text()))
        return super().prepare(nets, batch, progress, rng)


class Config(FlowConfig):
    family: str = "paced:Config"

    def build(self, data):
        return Paced(self, data)
"""


@dataclass
class Cluster:
    environment: dict[str, str]
    address: str
    said: Path

    def second(self) -> Any:
        """A node with room for one worker while the block runs."""
        room = ("--num-cpus=1", '--resources={"trainer": 1}', "--node-ip-address=127.0.0.3")
        return node(self.environment, self.said, f"--address={self.address}", *room)

    def drain(self, ip: str, seconds: float) -> None:
        """Tell the node that it is taken away so soon, as a provider of spot machines does."""
        gcs = GcsClient(address=self.address)
        (found,) = [
            i
            for i, info in gcs.get_all_node_info().items()
            if info.node_manager_address == ip and info.state == 0
        ]
        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        accepted, why = gcs.drain_node(found.hex(), reason, "spot", int((time.time() + seconds) * 1000))
        assert accepted, why


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A head with room for one worker and for reading."""
    folder = Path(tempfile.mkdtemp(prefix="sfumato-"))
    port = free_port()
    (tmp_path / "paced.py").write_text(PACED)
    environment = {
        **os.environ,
        **QUICK,
        **TRAIN_QUICK,
        "RAY_ADDRESS": f"127.0.0.2:{port}",
        "PYTHONPATH": f"{tmp_path}:{PLATFORM}",
    }
    head = ("--head", f"--port={port}", "--include-dashboard=false", "--node-ip-address=127.0.0.2")
    room = ("--num-cpus=3", '--resources={"trainer": 1}', f"--temp-dir={folder}")
    with node(environment, folder / "said.txt", *head, *room):
        yield Cluster(environment, f"127.0.0.2:{port}", folder / "said.txt")


@dataclass
class Run:
    folder: Path
    process: subprocess.Popen[str]

    def pace(self, seconds: float) -> None:
        (self.folder / "pace.new").write_text(str(seconds))
        (self.folder / "pace.new").replace(self.folder / "pace")

    def attempt(self) -> str:
        """What the newest group of workers calls itself; nothing before the first."""
        return next((path.read_text() for path in self.folder.glob("runs/tiny-*/attempt")), "")

    def wait(self, what: str, images: int, workers: int) -> None:
        """Until there is a checkpoint of so many workers, at so many images or later."""

        def found() -> bool:
            assert self.process.poll() is None, self.process.stderr and self.process.stderr.read()
            return any(m["world_size"] == workers and m["images"] >= images for m in self.checkpoints())

        wait_for(what, found, seconds=600)

    def checkpoints(self) -> list[dict[str, Any]]:
        """Their manifests, oldest first."""
        paths = self.folder.glob("runs/tiny-*/checkpoints/images-*/manifest.json")
        return sorted((json.loads(path.read_text()) for path in paths), key=lambda m: m["images"])


@contextmanager
def run(
    folder: Path, data: Path, environment: dict[str, str], every: int, **parallel: object
) -> Iterator[Run]:
    workers = {"workers": 2, "min_workers": 1, "resize_interval": 3, "resources_per_worker": {"trainer": 1}}
    write_tiny_recipe(
        folder,
        data,
        data={"read_tasks": 1},
        model={**LIKE_REFERENCE, "family": "paced:Config"},
        train={**TRAIN, "checkpoint": {"every": every, "keep": 50}},
        parallel={**workers, **parallel},
    )
    (folder / "pace").write_text("0.2")
    command = [sys.executable, "-m", "sfumato", "train", "tiny.yaml"]
    process = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        yield Run(folder, process)
    finally:
        process.kill()


def assert_ends_as(calm: dict[str, torch.Tensor], running: Run) -> str:
    """The run finishes, has counted every image once, and has the weights of the reference; what it said."""
    running.pace(0)
    _, said = running.process.communicate(timeout=600)
    assert running.process.returncode == 0, said
    assert "Traceback" not in said
    (folder,) = running.folder.glob("runs/tiny-*")
    result = json.loads((folder / "stages" / "train.json").read_text())["result"]
    assert (result["images"], result["steps"]) == (TRAIN["images"], TRAIN["images"] // TRAIN["batch"])
    for written in running.checkpoints():
        assert written["images"] == written["step"] * TRAIN["batch"]
    found = load_file(folder / "model" / "ema.safetensors")
    assert len(found) == sum(name.startswith("ema/") for name in calm)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, calm[f"ema/{name}"], rtol=0, atol=1e-5, msg=name)
    return said


@pytest.fixture(scope="module")
def calm(digits_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("calm")
    return launch(folder, world_size=1, strategy="single", family="flow", data=str(digits_data), train=TRAIN)


def test_a_node_joins_and_is_lost(
    cluster: Cluster, digits_data: Path, calm: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    with run(tmp_path, digits_data, cluster.environment, every=1_000) as running:
        running.wait("checkpoint of one worker", 1_000, workers=1)
        with cluster.second() as second:
            running.wait("checkpoint of two workers", 1_000, workers=2)
            both = running.checkpoints()[-1]["images"]
            end_group(second)
        running.wait("checkpoint of the worker that is left", both + 1, workers=1)
        said = assert_ends_as(calm, running)
    assert "training continues with 2 workers" in said
    assert said.count("training resumes from the checkpoint at") == 2, said


def test_a_node_is_taken_away_with_notice(
    cluster: Cluster, digits_data: Path, calm: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """No checkpoint is due for long, and no failure is endured: growth and the notice are none."""
    notice_s = 20.0
    with run(tmp_path, digits_data, cluster.environment, every=1_000_000, max_failures=0) as running:
        wait_for("one worker", running.attempt, seconds=600)
        alone = running.attempt()
        with cluster.second() as second:
            running.wait("checkpoint before there are two workers", 1, workers=1)
            wait_for("two workers", lambda: running.attempt() != alone, seconds=600)
            time.sleep(8)
            (grown,) = running.checkpoints()
            cluster.drain("127.0.0.3", notice_s)
            end = time.monotonic() + notice_s
            running.wait("checkpoint on notice", 1, workers=2)
            assert time.monotonic() < end - notice_s / 3, "the checkpoint was late"
            time.sleep(max(0.0, end - time.monotonic()) + 1)
            end_group(second)
            saved = [written["images"] for written in running.checkpoints()]
            assert len(saved) == 3, "before the growth, at the notice, and shortly before the end"
            said = assert_ends_as(calm, running)
    assert "1 node(s) with workers are about to be taken away: checkpoint at" in said
    for images in (grown["images"], saved[-1]):
        assert f"training resumes from the checkpoint at {images:,} images" in said, said


def test_workers_that_take_every_cpu_go_on_reading(
    cluster: Cluster, digits_data: Path, calm: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """Three workers on three CPUs, where one worker and its reading would have been enough."""
    wanted = {"workers": 3, "resources_per_worker": {}}
    with run(tmp_path, digits_data, cluster.environment, every=4_000, **wanted) as running:
        assert_ends_as(calm, running)
        assert {written["world_size"] for written in running.checkpoints()} == {3}

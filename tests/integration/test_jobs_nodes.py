"""A job on a cluster of two nodes with different resources goes on when the node with the trainer is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from ray_nodes import QUICK, free_port, node
from tiny_recipe import write_tiny_recipe
from waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


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


def test_the_node_with_the_trainer_is_lost_and_the_job_finishes(
    digits_data: Path, s3_server: object, tmp_path: Path
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="sfumato-"))
    token = tmp_path / "token"
    token.write_text("a1" * 32)
    port, dashboard = free_port(), free_port()
    environment = {
        **os.environ,
        **QUICK,
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
        **s3_server.environment,  # type: ignore[attr-defined]
        "AWS_ENDPOINT_URL": s3_server.endpoint,  # type: ignore[attr-defined]
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
    }
    write_tiny_recipe(
        tmp_path,
        digits_data,
        train={"images": 60_000, "checkpoint": {"every": 4_000, "uri": "s3://data/checkpoints"}},
        parallel={"resources_per_worker": {"trainer": 1}},
    )
    said, found = folder / "said.txt", checkpoints(s3_server.endpoint, s3_server.environment)  # type: ignore[attr-defined]
    head = ("--head", f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1")
    head += (f"--dashboard-agent-listen-port={free_port()}",)
    trainer = (f"--address=127.0.0.2:{port}", "--num-cpus=1", '--resources={"trainer": 1}')
    first = (*head, "--node-ip-address=127.0.0.2", "--num-cpus=3", f"--temp-dir={folder}")
    with node(environment, said, *first):
        wait_for("head", lambda: sfumato(tmp_path, environment, "jobs", "list").returncode == 0, seconds=600)
        submit = (
            "submit",
            "--root",
            str(tmp_path / "shared"),
            "--detach",
            "--json",
            "--",
            "train",
            "tiny.yaml",
        )
        alone = sfumato(tmp_path, environment, *submit)
        assert alone.returncode == 2 and "1 CPUs and 1 trainer each are needed" in alone.stderr, alone.stderr

        with node(environment, said, *trainer, "--node-ip-address=127.0.0.3"):
            sent = wait_for(
                "job that there is room for",
                lambda: (answer := sfumato(tmp_path, environment, *submit)).returncode == 0 and answer,
                seconds=600,
            )
            name = json.loads(sent.stdout)["job"]
            wait_for("checkpoint in the bucket", found, seconds=300)
        # Its node is gone, and another one comes in its place.
        with node(environment, said, *trainer, "--node-ip-address=127.0.0.4"):
            ended = sfumato(tmp_path, environment, "jobs", "attach", name)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "training resumes from the checkpoint at" in ended.stderr
    (run,) = (tmp_path / "shared" / "runs").glob("tiny-*")
    assert json.loads((run / "stages" / "train.json").read_text())["result"]["images"] >= 60_000
    assert (run / "model").is_dir()

"""A training run whose storage is stopped for twenty seconds and started again ends on the same weights.

The reference is computed by a plain process without Ray, from a local disk (tests/support/train_rank.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol

import pytest
import torch
from launch import launch
from pyarrow import fs
from safetensors.torch import load_file
from tiny_recipe import LIKE_REFERENCE, laid_over, write_tiny_recipe
from waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
OUTAGE_S = 20.0
STREAMS = 8
TRAIN = {
    "images": 6_000 * STREAMS,  # a minute of steps of one row a stream, on an idle core
    "batch": STREAMS,
    "micro_batch": STREAMS,
    "log_every": 100 * STREAMS,
    "preview_samples": 0,
    "checkpoint": {"every": 500 * STREAMS},
}


class Server(Protocol):
    endpoint: str
    bucket: str
    environment: dict[str, str]

    def start(self) -> None: ...
    def stop(self) -> None: ...


@pytest.fixture(scope="module")
def calm(digits_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of an undisturbed run."""
    folder = tmp_path_factory.mktemp("calm")
    return launch(folder, world_size=1, strategy="single", family="flow", data=str(digits_data), train=TRAIN)


@pytest.fixture
def storage(s3_server: Server, digits_data: Path) -> fs.FileSystem:
    """The bucket, with the digits in it."""
    store = fs.S3FileSystem(
        access_key=s3_server.environment["AWS_ACCESS_KEY_ID"],
        secret_key=s3_server.environment["AWS_SECRET_ACCESS_KEY"],
        endpoint_override=s3_server.endpoint,
    )
    fs.copy_files(str(digits_data), f"{s3_server.bucket}/outage/digits", destination_filesystem=store)
    return store


def recipe(folder: Path, data: str, checkpoints: str | None) -> Path:
    train = laid_over(TRAIN, {"checkpoint": {"uri": checkpoints}})
    reading = {"streams": STREAMS, "read_tasks": 1}
    return write_tiny_recipe(
        folder, data, data=reading, model=LIKE_REFERENCE, train=train, parallel={"strategy": "single"}
    )


@pytest.mark.parametrize("there", ["data", "checkpoints"])
def test_a_server_stopped_for_20_seconds_changes_no_bit(
    there: str,
    s3_server: Server,
    storage: fs.FileSystem,
    digits_data: Path,
    calm: dict[str, torch.Tensor],
    tmp_path: Path,
) -> None:
    bucket = f"{s3_server.bucket}/outage"
    data = f"s3://{bucket}/digits" if there == "data" else str(digits_data)
    written = f"{bucket}/checkpoints"
    path = recipe(tmp_path, data, f"s3://{written}" if there == "checkpoints" else None)

    def a_checkpoint() -> bool:
        if there == "data":
            return any(tmp_path.glob("runs/*/checkpoints/images-*/manifest.json"))
        found = storage.get_file_info(fs.FileSelector(written, recursive=True, allow_not_found=True))
        return any(info.base_name == "manifest.json" for info in found)

    environment = {**os.environ, **s3_server.environment, "AWS_ENDPOINT_URL": s3_server.endpoint}
    command = [sys.executable, "-m", "sfumato", "train", str(path)]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        wait_for("a checkpoint", a_checkpoint, process=process)
        s3_server.stop()
        try:
            time.sleep(OUTAGE_S)
        finally:
            s3_server.start()
        assert process.poll() is None, "training was over before the server was back"
        _, said = process.communicate(timeout=900)
    finally:
        process.kill()
    assert process.returncode == 0, said
    assert "Traceback" not in said
    logs = [log.read_text(errors="replace") for log in tmp_path.glob("runs/*/logs/ray/worker-*.err")]
    assert any("trying again" in text for text in [said, *logs]), "nobody felt the outage"
    (model,) = tmp_path.glob("runs/tiny-*/model")
    found = load_file(model / "ema.safetensors")
    assert len(found) == sum(name.startswith("ema/") for name in calm)
    for name, tensor in found.items():
        assert torch.equal(tensor, calm[f"ema/{name}"]), name

"""Training runs on Ray as a user starts them, and the plain processes whose weights they have to end with."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from launch import launch
from safetensors.torch import load_file
from tiny_recipe import LIKE_REFERENCE, laid_over, write_tiny_recipe

TRAIN = {
    "images": 16_000,
    "batch": 128,
    "micro_batch": 64,
    "log_every": 1_000,
    "preview_samples": 0,
    "checkpoint": {"every": 2_000},
}
TIMEOUT_S = 600


def write_recipe(folder: Path, data: Path, /, **parts: Any) -> Path:
    """What `reference` trains, as `tiny.yaml` on two workers; `parts` change fields of it."""
    like = {"model": LIKE_REFERENCE, "train": TRAIN, "parallel": {"workers": 2}}
    return write_tiny_recipe(folder, data, **laid_over(like, parts))


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


def newest(folder: Path) -> int:
    """Images at the newest checkpoint that counts."""
    manifests = folder.glob("runs/tiny-*/checkpoints/images-*/manifest.json")
    return max((int(path.parent.name.split("-")[1]) for path in manifests), default=0)


def workers(process: subprocess.Popen[str] | psutil.Process) -> list[psutil.Process]:
    """The training workers among what the process has started."""
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
    return launch(folder / "calm", world_size=2, strategy="ddp", family="flow", data=str(data), train=train)


def assert_model_is(folder: Path, calm: dict[str, torch.Tensor]) -> None:
    """The run's exported weights are the reference's, bit for bit."""
    (model,) = folder.glob("runs/tiny-*/model")
    found = load_file(model / "ema.safetensors")
    assert len(found) == sum(name.startswith("ema/") for name in calm)
    for name, tensor in found.items():
        assert torch.equal(tensor, calm[f"ema/{name}"]), name

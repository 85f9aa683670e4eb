"""A run that was killed and resumed ends with the weights of one that was not."""

from __future__ import annotations

from pathlib import Path

import torch
from launch import launch

MEMBER = {"family": "diffusion", "variant": "min_snr"}
"""DDPM on a transformer, which trains several times faster than on the U-Net."""
TRAIN = {
    "images": 5_120,  # two epochs and most of a third
    "batch": 128,
    "micro_batch": 64,
    "log_every": 1_000,
    "preview_samples": 0,
    "checkpoint": {"every": 640},
}


def test_killed_in_mid_epoch_and_resumed(digits_data: Path, tmp_path: Path) -> None:
    job = {**MEMBER, "data": str(digits_data), "train": TRAIN, "strategy": "ddp"}
    calm = launch(tmp_path / "calm", world_size=2, **job)
    stored = str(tmp_path / "checkpoints")
    launch(tmp_path / "killed", world_size=2, checkpoints=stored, kill_at=2_900, expect=9, **job)
    same = launch(tmp_path / "same", world_size=2, checkpoints=stored, **job)
    for name, expected in calm.items():
        if name != "losses":
            assert torch.equal(same[name], expected), f"{name} differs on the same number of workers"


def test_resumed_on_another_number_of_workers(digits_data: Path, tmp_path: Path) -> None:
    job = {**MEMBER, "data": str(digits_data), "train": TRAIN}
    calm = launch(tmp_path / "calm", world_size=1, strategy="single", **job)
    stored = str(tmp_path / "checkpoints")
    launch(
        tmp_path / "killed",
        world_size=1,
        strategy="single",
        checkpoints=stored,
        kill_at=2_900,
        expect=9,
        **job,
    )
    grown = launch(tmp_path / "grown", world_size=2, strategy="ddp", checkpoints=stored, **job)
    for name, expected in calm.items():
        if name != "losses":
            torch.testing.assert_close(
                grown[name], expected, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )

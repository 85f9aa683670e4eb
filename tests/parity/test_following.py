"""State that follows training (codebook, running averages, power iterations) is the same on any number of
ranks and after a kill."""

from __future__ import annotations

from pathlib import Path

import torch
from launch import launch, launch_all
from torch import Tensor

MEMBERS = (("vae", "ema"), ("gan", "running"))
TRAIN = {
    "images": 320,
    "batch": 64,
    "micro_batch": 16,
    "log_every": 64,
    "preview_samples": 0,
    "checkpoint": {"every": 64},
}


def test_state_of_real_members_on_one_two_and_four_ranks(digits_data: Path, tmp_path: Path) -> None:
    def cases(strategy: str) -> list[dict]:
        job = {"data": str(digits_data), "train": TRAIN, "strategy": strategy}
        return [{**job, "family": family, "variant": variant} for family, variant in MEMBERS]

    alone = launch_all(tmp_path / "1", cases("single"), world_size=1)
    found = {
        "fsdp on 2": launch_all(tmp_path / "2", cases("fsdp"), world_size=2),
        "ddp on 4": launch_all(tmp_path / "4", cases("ddp"), world_size=4),
    }
    stored = {**cases("ddp")[0], "checkpoints": str(tmp_path / "checkpoints")}
    launch(tmp_path / "killed", world_size=2, kill_at=192, expect=9, **stored)
    found["killed and resumed"] = [launch(tmp_path / "resumed", world_size=1, **stored)]
    for where, results in found.items():
        for expected, result in zip(alone, results, strict=False):
            assert isinstance(expected, dict), expected
            assert isinstance(result, dict), f"{where}: {result}"
            _agree(result, expected, where)


def _agree(found: dict[str, Tensor], expected: dict[str, Tensor], where: str) -> None:
    assert any(name.startswith("state/") for name in expected)
    for name, value in expected.items():
        if name != "losses":
            torch.testing.assert_close(
                found[name], value, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{where}, {n}: {m}"
            )

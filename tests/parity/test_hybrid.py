"""Two groups of two ranks, each with a whole copy cut over its ranks, compute what one process does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from launch import launch
from torch import Tensor

from sfumato.parallel import ParallelSettings
from sfumato.training.capabilities import problems
from sfumato.training.config import TrainSettings

MEMBER = {"family": "diffusion", "variant": "min_snr"}
TRAIN = {
    "images": 256,
    "batch": 64,
    "micro_batch": 16,
    "log_every": 64,
    "preview_samples": 0,
    "checkpoint": {"every": 128},
}


def assert_same(found: dict[str, Tensor], reference: dict[str, Tensor]) -> None:
    assert found.keys() == reference.keys()
    for name, expected in reference.items():
        torch.testing.assert_close(
            found[name], expected, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_groups_of_two_and_a_resume_on_one(digits_data: Path, tmp_path: Path) -> None:
    job = {**MEMBER, "data": str(digits_data), "train": TRAIN}
    one = launch(tmp_path / "one", world_size=1, strategy="single", **job)
    hybrid = {"strategy": "fsdp", "parallel": {"fsdp": {"shard": 2}}}
    stored = str(tmp_path / "checkpoints")
    first = launch(tmp_path / "first", world_size=4, checkpoints=stored, stop_at=128, **hybrid, **job)
    assert first
    assert_same(
        launch(tmp_path / "resumed", world_size=4, checkpoints=stored, **hybrid, **job),
        one | {"losses": one["losses"][-2:]},
    )
    assert_same(launch(tmp_path / "whole", world_size=4, **hybrid, **job), one)


def test_groups_that_do_not_come_out_even_are_refused() -> None:
    train = TrainSettings(images=64, batch=64)

    def found(**parallel: object) -> list[str]:
        return problems(train, ParallelSettings.model_validate({"workers": 4, **parallel}))

    assert not found(strategy="fsdp", fsdp={"shard": 2})
    (uneven,) = found(strategy="fsdp", fsdp={"shard": 3})
    assert "does not divide parallel.workers=4" in uneven
    (elastic,) = found(strategy="fsdp", fsdp={"shard": 2}, min_workers=2)
    assert "elastic" in elastic
    (other,) = found(strategy="ddp", fsdp={"shard": 2})
    assert "has no replicas of sharded groups" in other and "parallel.strategy=fsdp" in other
    with pytest.raises(ValueError, match="shard"):
        ParallelSettings.model_validate({"fsdp": {"shard": 1}})

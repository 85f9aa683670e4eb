"""What a run computes does not depend on how it is spread: every family, every strategy, one process as
the reference."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from launch import launch
from torch import Tensor

from sfumato import families
from sfumato.parallel import STRATEGIES

TRAIN = {"images": 512, "batch": 64, "micro_batch": 16, "log_every": 64, "preview_samples": 0}
REFERENCES: dict[str, dict[str, Tensor]] = {}


@cache
def _distributed() -> list[str]:
    return [name for name in STRATEGIES if name != "single"]


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("strategy", _distributed())
@pytest.mark.parametrize("family", families.names())
def test_same_weights_averages_and_losses_as_one_process(
    family: str, strategy: str, world_size: int, digits_data: Path, tmp_path: Path
) -> None:
    job = {"family": family, "data": str(digits_data), "train": TRAIN}
    if family not in REFERENCES:
        REFERENCES[family] = launch(tmp_path / "one", world_size=1, strategy="single", **job)
    reference = REFERENCES[family]
    found = launch(tmp_path / "many", world_size=world_size, strategy=strategy, **job)
    assert found.keys() == reference.keys()
    for name, expected in reference.items():
        torch.testing.assert_close(
            found[name], expected, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_micro_batches_change_nothing_but_rounding(digits_data: Path, tmp_path: Path) -> None:
    """The gradient of one batch of 64 is the sum over its micro-batches, with the same noise."""
    job = {"family": "diffusion", "strategy": "single", "data": str(digits_data)}
    one_step = {**TRAIN, "images": 64}
    whole = launch(tmp_path / "a", world_size=1, train={**one_step, "micro_batch": None}, **job)
    cut = launch(tmp_path / "b", world_size=1, train={**one_step, "micro_batch": 4}, **job)
    assert whole["losses"].item() == pytest.approx(cut["losses"].item(), rel=1e-6)


def test_two_workers_add_the_same_numbers_as_one(digits_data: Path, tmp_path: Path) -> None:
    """With the cut fixed by `micro_batch`, two ranks do bit for bit what one does in two parts."""
    job = {"family": "diffusion", "data": str(digits_data), "train": {**TRAIN, "micro_batch": 32}}
    one = launch(tmp_path / "one", world_size=1, strategy="single", **job)
    two = launch(tmp_path / "two", world_size=2, strategy="ddp", **job)
    for name in one:
        if name != "losses":  # a mean over ranks, summed in another order
            assert torch.equal(one[name], two[name]), name

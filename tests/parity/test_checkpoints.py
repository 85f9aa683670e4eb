"""A checkpoint of one strategy goes on under any other, on another number of ranks too."""

from __future__ import annotations

from pathlib import Path

import torch
from launch import launch, launch_all
from matrix import strategies

MEMBER = {"family": "diffusion", "variant": "min_snr"}
"""DDPM on a transformer, which trains several times faster than on the U-Net."""
TRAIN = {
    "images": 640,
    "batch": 64,
    "micro_batch": 16,
    "log_every": 64,
    "preview_samples": 0,
    "checkpoint": {"every": 64},
}


def test_every_strategy_takes_over_from_the_one_before(digits_data: Path, tmp_path: Path) -> None:
    """A step under each in turn, the sharding ones twice; weights, averages and moments come through.

    Two ranks do all but the last steps, which one does alone.
    """
    job = {**MEMBER, "data": str(digits_data), "train": TRAIN}
    stored = str(tmp_path / "checkpoints")
    chain = [name for name in ("ddp", *strategies(), "fsdp", "zero3", "ddp") if name in strategies()]
    cases = [
        {**job, "strategy": "ddp"},
        *(
            {**job, "strategy": name, "checkpoints": stored, "stop_at": 64 * (turn + 1)}
            for turn, name in enumerate(chain)
        ),
    ]
    calm, *parts = launch_all(tmp_path / "two", cases, world_size=2)
    failed = [result for result in (calm, *parts) if isinstance(result, str)]
    assert not failed, failed[0]
    last = launch(tmp_path / "last", world_size=1, strategy="single", checkpoints=stored, **job)
    assert not all(torch.equal(parts[-1][name], calm[name]) for name in calm if name != "losses")
    for name, expected in calm.items():
        if name != "losses":
            torch.testing.assert_close(
                last[name], expected, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )

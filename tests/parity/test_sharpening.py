"""VQGAN, with a codebook that follows the latents: two ranks compute what one process does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from launch import launch
from matrix import TRAIN

MODEL = {
    "family": "vae",
    "condition": "none",
    "network": {"channels": [4, 8], "norm_groups": 2},
    "latent": {"kind": "vq", "channels": 4, "quantizer": {"kind": "ema", "size": 16, "decay": 0.9}},
    "perceptual": {"kind": "efficientnet", "stages": 1},
    "adversarial": {"width": 4, "layers": 1, "start_images": 64},
}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_vqgan_on_two_ranks_equals_one_process(strategy: str, digits_data: Path, tmp_path: Path) -> None:
    job = {"family": "vae", "model": MODEL, "data": str(digits_data), "train": TRAIN}
    one = launch(tmp_path / "one", world_size=1, strategy="single", **job)
    two = launch(tmp_path / "two", world_size=2, strategy=strategy, **job)
    assert one.keys() == two.keys()
    for name, expected in one.items():
        torch.testing.assert_close(
            two[name], expected, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )

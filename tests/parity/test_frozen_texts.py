"""Frozen text encoders, spread over ranks or whole, and one that trains with the model: as in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from example_sets import pack_digits
from launch import launch
from matrix import TRAIN
from text_folders import save_text_model

from sfumato.core.pretrained import Pretrained
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.runtime.runs.pretrained import look_up
from sfumato.text.config import TextConfig
from sfumato.text.encoders.folder import FolderConfig
from sfumato.text.encoders.joint import JointConfig


def model(folder: Path) -> dict[str, Any]:
    weights = look_up(Pretrained(folder=str(save_text_model(folder / "t5", "t5"))), folder, "w")
    frozen = FolderConfig(weights=weights, tokens=8, shard=True, dropout=0.2).learnt(lambda: ())
    text = TextConfig(encoders=(JointConfig.tiny(), frozen))
    config = DiffusionConfig.variants()["pixart"].model_copy(update={"text": text})
    return config.model_dump(mode="json")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_equal_one_process(strategy: str, tmp_path: Path) -> None:
    data = pack_digits(tmp_path, tmp_path / "packed")
    job = {"family": "diffusion", "model": model(tmp_path), "data": str(data), "train": TRAIN}
    job |= {"reading": {"text": True}}
    one = launch(tmp_path / "one", world_size=1, strategy="single", **job)
    two = launch(tmp_path / "two", world_size=2, strategy=strategy, **job)
    assert one.keys() == two.keys()
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, rtol=1e-5, atol=1e-5)

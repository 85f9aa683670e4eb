"""What tests of ranks stand on: a rank that fails alone is reported, one that is to die has to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from launch import launch, launch_all

from sfumato.families.diffusion import Config

TRAIN = {"images": 64, "batch": 64, "log_every": 64, "preview_samples": 0}
FAILS = """
import os
from sfumato.families.diffusion import Config as Diffusion

class Config(Diffusion):
    family: str = "fails_alone:Config"

    def build(self, data):
        if os.environ["RANK"] == "1":
            raise ValueError("rank one fails alone")
        return super().build(data)
"""


def test_a_rank_that_fails_alone_is_reported_and_harms_no_later_case(
    digits_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its family lies on PYTHONPATH, as one outside the package does."""
    (tmp_path / "fails_alone.py").write_text(FAILS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    job = {"data": str(digits_data), "train": TRAIN, "strategy": "ddp"}
    model = {**Config.tiny().model_dump(), "family": "fails_alone:Config"}
    cases = [
        {**job, "family": "diffusion"},
        {**job, "family": "fails_alone:Config", "model": model},
        {**job, "family": "diffusion"},
    ]
    before, failed, after = launch_all(tmp_path / "ranks", cases, world_size=2)
    assert isinstance(failed, str) and "rank one fails alone" in failed
    assert isinstance(before, dict) and isinstance(after, dict)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_ranks_that_are_to_die_have_to(digits_data: Path, tmp_path: Path) -> None:
    job = {"family": "diffusion", "data": str(digits_data), "train": TRAIN, "strategy": "ddp"}
    launch(tmp_path / "dies", world_size=2, kill_at=0, expect=9, **job)
    with pytest.raises(AssertionError, match=r"exited with \[0, 0\]"):
        launch(tmp_path / "lives", world_size=2, expect=9, **job)

"""Which checkpoints stay, and how two recipes are told apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sfumato.errors import CheckpointError
from sfumato.training import checkpoint as checkpoints
from sfumato.training.retention import best, mark_best
from sfumato.training.store import LocalStore


def test_newest_every_and_best_stay(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    writer = checkpoints.Writer(
        store, keep=2, keep_every=300, recipe_digest="r", strategy="single", scratch=tmp_path
    )
    for images in range(80, 1121, 80):
        writer.save({"nets/a/w": torch.full((2,), float(images))}, images=images, step=1)
        name = writer.wait()
        assert name is not None
        if images == 480:
            mark_best(store, name, metric="fd", value=1.5)
    writer.close()
    assert best(store) == next(c.name for c in checkpoints.complete(store) if c.images == 480)
    # Multiples of 300: the first checkpoints at or after them are 320, 640 and 960.
    assert [c.images for c in checkpoints.complete(store)] == [1120, 1040, 960, 640, 480, 320]


def test_what_is_no_checkpoint_cannot_be_the_best(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        mark_best(store, "images-1", metric="fd", value=1.0)
    (tmp_path / "best.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"best\.json is damaged"):
        best(store)

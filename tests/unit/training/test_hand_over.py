"""A checkpoint that goes from one run to another: the same tensors under another recipe, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sfumato.errors import CheckpointError
from sfumato.training import checkpoint as checkpoints
from sfumato.training import hand_over
from sfumato.training.resume import newest_whole
from sfumato.training.store import LocalStore


def run_with(folder: Path, digest: str, *images: int) -> LocalStore:
    store = LocalStore(folder)
    writer = checkpoints.Writer(store, keep=5, recipe_digest=digest, strategy="single", scratch=folder / "s")
    for at in images:
        state = {"nets/a/weight": torch.full((30, 4), float(at)), "optim/a/weight/step": torch.tensor(at)}
        writer.save(state, images=at, step=at // 2)
    writer.close()
    return store


def test_the_receiver_has_the_givers_tensors_under_its_own_recipe(tmp_path: Path) -> None:
    giver = run_with(tmp_path / "giver", "giver", 100, 200)
    taker = run_with(tmp_path / "taker", "taker", 150, 300)
    parcel = tmp_path / "parcel"
    parcel.mkdir()
    assert hand_over.take_out(giver, 180, parcel, wait_s=1) == 200
    hand_over.put_in(taker, parcel, token="abc", recipe_digest="new", recipe={"lr": 2})

    (found,) = checkpoints.complete(taker)
    assert (found.images, found.manifest.step) == (200, 100)
    assert (found.manifest.recipe_digest, found.manifest.recipe) == ("new", {"lr": 2})
    whole = newest_whole(taker, tmp_path)
    assert whole is not None and whole.name == found.name
    stored = checkpoints.load(taker, found, tmp_path)
    assert torch.equal(stored["nets/a/weight"], torch.full((30, 4), 200.0))
    assert int(stored["optim/a/weight/step"]) == 200
    assert [found.images for found in checkpoints.complete(giver)] == [200, 100], "the giver keeps its own"


def test_what_is_not_there_is_said_and_what_is_late_is_not_waited_for_longer_than_asked(
    tmp_path: Path,
) -> None:
    parcel = tmp_path / "parcel"
    parcel.mkdir()
    with pytest.raises(CheckpointError, match="no checkpoint at 50 images"):
        hand_over.take_out(LocalStore(tmp_path / "empty"), 50, parcel, wait_s=0)
    store = run_with(tmp_path / "giver", "giver", 100)
    assert hand_over.take_out(store, 500, parcel, wait_s=0) == 100
    assert hand_over.take_out(store, 500, parcel, wait_s=60, going_on=lambda: False) == 100


def test_a_damaged_checkpoint_is_not_handed_over(tmp_path: Path) -> None:
    store = run_with(tmp_path / "giver", "giver", 100)
    shard = next((tmp_path / "giver").glob("images-*/*.distcp"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    (tmp_path / "parcel").mkdir()
    with pytest.raises(CheckpointError, match="damaged"):
        hand_over.take_out(store, 100, tmp_path / "parcel", wait_s=0)

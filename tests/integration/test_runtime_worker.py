"""A training worker on its own, in this process, with a real board: what it leaves where it stops early."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from safetensors.torch import load_file, save_file
from tiny_recipe import tiny_recipe

from sfumato import recipe as recipes
from sfumato.core.family import Trainable
from sfumato.data.format.manifest import Manifest
from sfumato.errors import CheckpointError
from sfumato.families.flow import Config
from sfumato.recipe import Recipe
from sfumato.runtime.runs.run_folder import RunFolder
from sfumato.runtime.training import progress_actor as boards
from sfumato.runtime.training.ema_snapshots import averages_uri
from sfumato.runtime.training.job import TrainJob, train_worker
from sfumato.sampling.model_files import read_card
from sfumato.sampling.pretrained_files import file_digest
from sfumato.training import checkpoint as checkpoints
from sfumato.training.store import open_store

BATCH = 128
EARLY = {"metric": "fd_classifier", "patience": 1}


def run(job: TrainJob) -> dict[str, Any]:
    summary = train_worker({"job": job})
    assert summary is not None
    return summary


STARTED = """
from dataclasses import replace
from typing import Literal

from pydantic import Field
from sfumato.core.pretrained import Pretrained
from sfumato.families.flow import Config


class Started(Config):
    family: Literal["started:Started"] = "started:Started"
    start: Pretrained = Field(description="Where its network starts.")

    def build(self, data):
        family = super().build(data)
        spec = replace(family.nets["network"], weights=self.start.weights())
        family.nets = {**family.nets, "network": spec}
        return family
"""


@pytest.fixture
def job(digits_data: Path, tmp_path: Path) -> Callable[..., tuple[TrainJob, Recipe, RunFolder]]:
    """A job of one worker on a tiny recipe with changed sections, its recipe, and its run's folder."""

    def made(**sections: Any) -> tuple[TrainJob, Recipe, RunFolder]:
        content = tiny_recipe(
            digits_data,
            data={"read_tasks": 0},
            parallel={"strategy": "single", "hang_timeout": None},
            storage=str(tmp_path),
            **sections,
        )
        recipe, manifest = recipes.parse(content), Manifest.load(digits_data)
        folder = RunFolder.of(recipe, manifest.digest)
        folder.create(recipe, manifest.digest)
        tracker: Any = SimpleNamespace(open=lambda: None)  # MLflow has no say in where training ends
        board = boards.create(folder.id)
        return TrainJob(recipe.model_dump(mode="json"), str(folder.path), 1, board, tracker), recipe, folder

    return made


@pytest.mark.usefixtures("ray_local")
def test_a_resumed_run_does_not_open_its_initial_weights(
    job: Callable[..., tuple[TrainJob, Recipe, RunFolder]],
    digits_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "started.py").write_text(STARTED)
    weights = tmp_path / "start.safetensors"
    plain = tiny_recipe(digits_data)["model"]
    network = Config.tiny().build(Manifest.load(digits_data).spec).nets["network"]
    assert isinstance(network, Trainable)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        save_file(network.build().state_dict(), weights)
    start = {"file": str(weights), "digest": file_digest(weights)}
    model = {**plain, "family": "started:Started", "start": start}
    settings = {"images": 2 * BATCH, "log_every": BATCH, "checkpoint": {"every": BATCH}, "preview_samples": 0}
    first, _, folder = job(model=model, train=settings)
    weights.rename(tmp_path / "away")
    with pytest.raises(CheckpointError, match="is not there"):
        run(first)
    (tmp_path / "away").rename(weights)
    first, _, _ = job(model=model, train=settings)
    assert run(first)["resumed_from"] == 0
    trained = load_file(folder.model / "ema.safetensors")

    weights.unlink()
    again, _, _ = job(model=model, train=settings)
    assert run(again)["resumed_from"] == 2 * BATCH
    resumed = load_file(folder.model / "ema.safetensors")
    assert trained.keys() == resumed.keys()
    assert all(torch.equal(trained[key], resumed[key]) for key in trained)


@pytest.mark.usefixtures("ray_local")
def test_an_early_stop_leaves_the_averages_of_its_end(
    job: Callable[..., tuple[TrainJob, Recipe, RunFolder]],
) -> None:
    early, recipe, folder = job(
        train={"images": 40 * BATCH, "log_every": 3 * BATCH, "snapshots": {"every": 2 * BATCH}},
        evaluate={"every": 40 * BATCH, "early_stop": EARLY},
    )
    ray.get(early.board.stop.remote("it gets no better"))

    stopped = run(early)
    assert stopped["images"] == 3 * BATCH
    averages, saved = open_store(averages_uri(recipe, folder)), open_store(folder.checkpoint_uri(recipe))
    assert [found.images for found in checkpoints.complete(averages)] == [3 * BATCH, 2 * BATCH]
    assert [found.images for found in checkpoints.complete(saved)] == [3 * BATCH]
    assert read_card(folder.model)[0]["images"] == 3 * BATCH

    again = run(early)
    assert (again["images"], again["resumed_from"]) == (3 * BATCH, 3 * BATCH)
    assert len(checkpoints.complete(saved)) == 1, "the checkpoint that it resumed from is not written again"
    notes = ray.get(early.board.snapshot.remote()).notes
    assert "training stops early at 384 images: it gets no better" in notes

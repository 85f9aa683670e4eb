"""A training worker on its own, in this process, with a real board: what it leaves where it stops early."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from tiny_recipe import tiny_recipe

from sfumato import recipe as recipes
from sfumato.data.format.manifest import Manifest
from sfumato.runtime.runs.run_folder import RunFolder
from sfumato.runtime.training import progress_actor as boards
from sfumato.runtime.training.ema_snapshots import averages_uri
from sfumato.runtime.training.job import TrainJob, train_worker
from sfumato.sampling.model_files import read_card
from sfumato.training import checkpoint as checkpoints
from sfumato.training.store import open_store

BATCH = 128
EARLY = {"metric": "fd_classifier", "patience": 1}


def run(job: TrainJob) -> dict[str, Any]:
    summary = train_worker({"job": job})
    assert summary is not None
    return summary


@pytest.mark.usefixtures("ray_local")
def test_an_early_stop_leaves_the_averages_of_its_end(digits_data: Path, tmp_path: Path) -> None:
    content = tiny_recipe(
        digits_data,
        data={"read_tasks": 0},
        train={"images": 40 * BATCH, "log_every": 3 * BATCH, "snapshots": {"every": 2 * BATCH}},
        evaluate={"every": 40 * BATCH, "early_stop": EARLY},
        parallel={"strategy": "single", "hang_timeout": None},
        storage=str(tmp_path),
    )
    recipe, manifest = recipes.parse(content), Manifest.load(digits_data)
    folder = RunFolder.of(recipe, manifest.digest)
    folder.create(recipe, manifest.digest)
    board = boards.create(folder.id)
    ray.get(board.stop.remote("it gets no better"))
    tracker: Any = SimpleNamespace(open=lambda: None)  # MLflow has no say in where training ends
    job = TrainJob(recipe.model_dump(mode="json"), str(folder.path), 1, board, tracker)

    stopped = run(job)
    assert stopped["images"] == 3 * BATCH
    averages, saved = open_store(averages_uri(recipe, folder)), open_store(folder.checkpoint_uri(recipe))
    assert [found.images for found in checkpoints.complete(averages)] == [3 * BATCH, 2 * BATCH]
    assert [found.images for found in checkpoints.complete(saved)] == [3 * BATCH]
    assert read_card(folder.model)[0]["images"] == 3 * BATCH

    again = run(job)
    assert (again["images"], again["resumed_from"]) == (3 * BATCH, 3 * BATCH)
    assert len(checkpoints.complete(saved)) == 1, "the checkpoint that it resumed from is not written again"
    notes = ray.get(board.snapshot.remote()).notes
    assert "training stops early at 384 images: it gets no better" in notes

"""Evaluations beside a real training run: right figures at the right images, the best model, an early end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sfumato import recipe as recipes
from sfumato.evaluation.evaluation import Evaluation
from sfumato.evaluation.references.reference import PackedReference
from sfumato.evaluation.stage import evaluate
from sfumato.families.flow import Config
from sfumato.runtime.commands import stages
from sfumato.runtime.runs.display import Display
from sfumato.runtime.runs.session import open_session
from sfumato.runtime.training.validation import read_records
from sfumato.sampling.generator import Generator

EVERY = 512  # reached well before an evaluation is over
LONG = 100 * EVERY


@pytest.mark.usefixtures("ray_local")
def test_a_run_that_gets_no_better_stops_early_and_keeps_its_best_model(
    digits_data: Path, tmp_path: Path
) -> None:
    recipe = recipes.parse(
        {
            "name": "tiny",
            "storage": "runs",
            "data": {"path": str(digits_data), "streams": 8, "shuffle_window": 100, "read_tasks": 1},
            "model": Config.tiny().model_dump(mode="json"),
            "train": {
                "images": LONG,
                "batch": 128,
                "log_every": EVERY,
                "preview_samples": 0,
                "checkpoint": {"every": LONG},
            },
            "parallel": {"workers": 1, "cpus_per_worker": 1, "threads_per_worker": 1},
            "evaluate": {
                "every": EVERY,
                "samples": 200,
                "samples_during": 100,
                "feature_options": {"classifier": {"seen": 2_000, "base": 8, "dim": 16}},
                "accept_weak_features": True,
                # No figure can gain so much: every evaluation after the first counts as no better.
                "early_stop": {"metric": "fd_classifier", "patience": 1, "min_change": 1e9},
                "best": {"metric": "fd_classifier"},
            },
            "tracking": {"system_metrics": False},
        }
    )
    with open_session(recipe, Display(), root=tmp_path) as session:
        summary = stages.train(session)
        again = stages.train(session)
        settings, folder = session.recipe.evaluate, session.folder
    assert again == summary, "an early end is an end: it is not trained further"
    assert 2 * EVERY < summary["images"] < LONG
    assert summary["images"] % 128 == 0

    records = read_records(folder)
    assert [record.images for record in records] == [EVERY * (i + 1) for i in range(len(records))]
    assert len(records) == summary["images"] // EVERY, "snapshots that were left are evaluated at the end"
    assert not list((folder.path / "snapshots").iterdir()), "what was evaluated is removed"

    first, second = records[:2]
    assert first.reached < second.reached < first.finished, "training went on while it was evaluated"

    values = [record.metrics["fd_classifier"] for record in records]
    best = Generator.load(folder.path / "best")
    assert best.images == records[values.index(min(values))].images
    alone = evaluate(
        Evaluation.of_model(
            settings.model_copy(update={"samples": 100, "actors": 0}),
            model_folder=folder.path / "best",
            reference=PackedReference(digits_data),
            out=tmp_path / "alone",
            cache=tmp_path / "cache",
        )
    )
    assert dict(alone.metrics) == records[values.index(min(values))].metrics

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    run_id = json.loads((folder.path / "run.json").read_text())["mlflow_run_id"]
    curve = {p.step: p.value for p in client.get_metric_history(run_id, "eval_100/fd_classifier")}
    assert curve == {record.images: record.metrics["fd_classifier"] for record in records}
    tags = client.get_run(run_id).data.tags
    assert tags["sfumato.best_images"] == str(best.images)
    assert tags["sfumato.eval.fd_classifier"].startswith("classifier, ")

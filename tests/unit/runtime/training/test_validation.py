"""What is left of an evaluation in training that a kill cut short."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from repository import DIGITS
from rich.console import Console

from sfumato import recipe as recipes
from sfumato.evaluation.config import EvaluateSettings
from sfumato.evaluation.decisions.early_stopping import EarlyStopSettings
from sfumato.evaluation.report import EvaluationReport
from sfumato.runtime.commands import stages
from sfumato.runtime.runs.display import Display
from sfumato.runtime.runs.run_folder import RunFolder, snapshot_folder
from sfumato.runtime.training import validation
from sfumato.sampling.model_folder import CARD


def report(value: float) -> EvaluationReport:
    return EvaluationReport(
        metrics={"fd_classifier": value},
        details={},
        features={},
        higher_is_better={"fd_classifier": False},
        samples=64,
        reference_samples=64,
        reference_digest="r",
        seed=0,
        seconds=1.0,
        seconds_per_image=1.0,
        preview=None,
    )


class Silent:
    """Stands for the board's handle and the run's tracker: neither decides anything here."""

    def __getattr__(self, name: str) -> Any:
        return Silent()

    def __call__(self, *arguments: Any, **options: Any) -> None:
        return None


def killed(*paths: Path) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def evaluations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The evaluations of a run as the driver has them at a start, with figures that are known beforehand."""
    values = {100: 3.0, 200: 2.0}
    settings = ["evaluate.every=100", "evaluate.best.metric=fd_classifier", f"storage={tmp_path}"]
    recipe = recipes.load(DIGITS, settings)
    folder = RunFolder(tmp_path / "run")
    monkeypatch.setattr(
        validation, "_start", lambda recipe, settings, folder, snapshot, keep_blocks: snapshot
    )

    def started() -> SimpleNamespace:
        display = Display(Console(quiet=True))
        found = validation.TrainingEvaluations(recipe, folder, Silent(), display, Silent())  # type: ignore[arg-type]
        found._tracker = Silent()  # type: ignore[assignment]
        found._result = lambda snapshot: report(values[int(snapshot.name.split("-")[1])])  # type: ignore[method-assign]
        return SimpleNamespace(all=found, folder=folder)

    for images in values:
        snapshot = snapshot_folder(folder, images)
        snapshot.mkdir(parents=True)
        (snapshot / CARD).write_text(str(images))
    return started


def test_the_best_is_copied_again_where_a_kill_cut_the_copy_short(
    evaluations: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluations()
    (snapshot, _) = first.all._waiting()
    with monkeypatch.context() as patched:
        patched.setattr(validation, "_replace", killed)
        with pytest.raises(KeyboardInterrupt):
            first.all._evaluate(snapshot)
    again = evaluations()
    while waiting := again.all._waiting():
        again.all._evaluate(waiting[0])
    best = again.folder.path / validation.BEST / CARD
    assert best.read_text() == "200"
    assert [record.images for record in validation.read_records(again.folder)] == [100, 200]
    assert list((again.folder.path / "snapshots").iterdir()) == []


def test_a_snapshot_that_is_on_record_is_not_evaluated_again_and_goes(evaluations: Any) -> None:
    run = evaluations()
    for snapshot in run.all._waiting():
        run.all._evaluate(snapshot)
    rewritten = snapshot_folder(run.folder, 100)  # by training that went back to an earlier checkpoint
    rewritten.mkdir(parents=True)
    (rewritten / CARD).write_text("100")
    assert evaluations().all._waiting() == []
    assert not rewritten.exists()


def test_figures_count_where_the_best_cannot_be_kept(
    evaluations: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = evaluations()

    def full(*paths: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(validation, "_replace", full)
    for snapshot in run.all._waiting():
        run.all._evaluate(snapshot)
    assert [record.images for record in validation.read_records(run.folder)] == [100, 200]


def test_a_run_has_ended_by_the_patience_that_ended_it_and_goes_on_with_more(tmp_path: Path) -> None:
    """Evaluations that came in after the end may have found a better model than the patience knew."""
    folder = RunFolder(tmp_path)
    values = {100: 1.0, 200: 2.0, 300: 3.0, 400: 0.5}
    records = [validation._record(images, 0.0, report(value)) for images, value in values.items()]
    folder.write_json(validation.DURING, [asdict(record) for record in records])

    def ended(patience: int, stopped_by: object) -> bool:
        early = EarlyStopSettings(metric="fd_classifier", patience=patience)
        session = SimpleNamespace(
            folder=folder,
            recipe=SimpleNamespace(evaluate=EvaluateSettings(early_stop=early)),
        )
        return stages._stopped_early(session, {"images": 400, "stopped_by": stopped_by})  # type: ignore[arg-type]

    by_two = EarlyStopSettings(metric="fd_classifier", patience=2).model_dump(mode="json")
    assert ended(2, by_two)
    assert not ended(3, by_two)


def test_a_collapsed_run_gets_its_best_model_back(tmp_path: Path) -> None:
    fields = ["evaluate.every=100", "evaluate.best.metric=fd_classifier", "evaluate.collapse.patience=1"]
    recipe = recipes.load(DIGITS, [*fields, f"storage={tmp_path}", "evaluate.on_collapse=restore_best"])
    folder, display = RunFolder(tmp_path / "run"), Display(Console(quiet=True))
    for name, content in (("model", "last"), (validation.BEST, "best")):
        (folder.path / name).mkdir(parents=True)
        (folder.path / name / CARD).write_text(content)
    folder.write_json("best.json", {"images": 100, "metric": "fd_classifier", "value": 3.0})

    def evaluated(recall: float) -> None:
        record = validation._record(200, 0.0, report(2.0))
        record.metrics["recall"] = recall
        folder.write_json(validation.DURING, [asdict(record)])

    evaluated(0.5)
    validation.restore_best(recipe, folder, display)
    assert (folder.model / CARD).read_text() == "last", "it has not collapsed"
    evaluated(0.0)
    validation.restore_best(recipe.model_copy(deep=True), folder, display)
    assert (folder.model / CARD).read_text() == "best"
    assert (folder.path / validation.BEST / CARD).read_text() == "best"

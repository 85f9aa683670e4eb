"""Evaluations during training: on their own resources, next to the training group, never in it.

Every `evaluate.every` images the workers write the networks that sampling needs to `snapshots/`, which
costs as much as an export, and continue. The driver finds the folder and starts a Ray task for it, with
its own CPUs and GPUs; snapshots are evaluated one after another, in the order of images. Figures are recorded
on the run at the images of their snapshot, the best model is kept as `best/`, and an early stop is a request
on the board that all training workers read at the same step.

`evaluation/during.json` lists finished evaluations: a killed run resumes with the missing ones.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ray

from sfumato.errors import CheckpointError
from sfumato.evaluation.config import EvaluateSettings
from sfumato.evaluation.decisions.collapse_limits import signs
from sfumato.evaluation.decisions.early_stopping import Point, best_of
from sfumato.evaluation.decisions.ending import collapsed, reason_to_end
from sfumato.evaluation.decisions.weakness import fit, refusal
from sfumato.evaluation.evaluation import Evaluation
from sfumato.evaluation.references.reference import PackedReference
from sfumato.evaluation.report import EvaluationReport
from sfumato.evaluation.stage import evaluate
from sfumato.recipe import Recipe
from sfumato.runtime.commands.evaluate import CACHE, figures_of
from sfumato.runtime.runs.display import Display
from sfumato.runtime.runs.run_folder import RunFolder, snapshot_folder
from sfumato.sampling.model_folder import CARD
from sfumato.tracking.run import Tracker, TrackerHandle
from sfumato.training.checkpoint import complete
from sfumato.training.retention import mark_best
from sfumato.training.store import open_store

log = logging.getLogger(__name__)

DURING = "evaluation/during.json"
BEST = "best"
NO_MORE = sys.maxsize
"""Images up to which all snapshots count as evaluated once no more follow, so that nothing waits."""
_POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class EvaluationRecord:
    """An evaluation during training: its figures, and when training reached that point."""

    images: int
    reached: float
    """Unix seconds at which the snapshot was written."""
    samples: int
    metrics: dict[str, float]
    higher_is_better: dict[str, bool]
    intervals: dict[str, Any] = field(default_factory=dict)
    finished: float = 0.0
    """Unix seconds at which it was evaluated; training continued in the meantime."""
    marks: dict[str, Any] = field(default_factory=dict)
    """Why a figure says little, by the figure's name."""

    def point(self, settings: EvaluateSettings) -> Point:
        """The figures that may decide what the settings leave to figures."""
        metrics = fit(self.metrics, self.marks, accepted=settings.accept_weak_features)
        return Point(self.images, metrics, self.higher_is_better)


def read_records(folder: RunFolder) -> list[EvaluationRecord]:
    """The evaluations of a run so far, in the order of images."""
    found = [EvaluationRecord(**record) for record in folder.read_json(DURING) or []]
    return sorted(found, key=lambda record: record.images)


def early_end(settings: EvaluateSettings, records: Sequence[EvaluationRecord]) -> str | None:
    """Why a run with these evaluations ends before its last image; None: it does not."""
    points = [record.point(settings) for record in records]
    return reason_to_end(points, _figures(records), settings)


def restore_best(recipe: Recipe, folder: RunFolder, display: Display) -> None:
    """Put the best model in the place of one that has collapsed, where `evaluate.on_collapse` asks for it."""
    settings = recipe.evaluate
    found = collapsed(_figures(read_records(folder)), settings)
    if settings.on_collapse != "restore_best" or not found:
        return
    best = folder.read_json("best.json")
    if best is None or not (folder.path / BEST / CARD).is_file():
        display.note("mode collapse: no evaluation kept a best model, so that the last weights stay")
        return
    _replace(folder.path / BEST, folder.model)
    display.note(
        f"mode collapse: the model is that of {best['images']:,} images, whose {best['metric']} of "
        f"{best['value']:.4g} is the best; checkpoints stay as they are"
    )


def _figures(records: Sequence[EvaluationRecord]) -> dict[int, dict[str, float]]:
    return {record.images: record.metrics for record in records}


class TrainingEvaluations:
    """Evaluates a run's snapshots while the block runs, and the remaining ones at its end.

    Without `evaluate.every` it does nothing. A failed evaluation is reported and left out; training
    continues.
    """

    def __init__(
        self, recipe: Recipe, folder: RunFolder, tracker: TrackerHandle, display: Display, board: Any
    ) -> None:
        self._recipe = recipe
        self._folder = folder
        self._handle = tracker
        self._display = display
        self._board = board
        self._settings = recipe.evaluate.during()
        self._records = read_records(folder) if recipe.evaluate.every else []
        self._failed: set[Path] = set()
        self._ended = threading.Event()
        self._given_up = threading.Event()
        self._thread: threading.Thread | None = None
        self._tracker: Tracker | None = None
        self._warned = False

    def __enter__(self) -> Self:
        if self._recipe.evaluate.every is not None:
            self._tracker = self._handle.open("evaluation")
            self._decide()  # a run that had been asked to stop is asked again
            self._board.evaluated.remote(max((record.images for record in self._records), default=0))
            self._thread = threading.Thread(target=self._watch, name="evaluations", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None:
            return
        if kind is not None:
            self._given_up.set()
        elif left := len(self._waiting()):
            count = f"{left} snapshot{'s' if left > 1 else ''} of the training"
            lives = self._thread.is_alive()
            self._display.line(f"evaluate: {count} left" if lives else f"evaluate: {count} not evaluated")
        self._ended.set()
        self._thread.join()
        if self._tracker is not None:
            self._tracker.close()

    def _watch(self) -> None:
        try:
            self._evaluate_all()
        except Exception as error:
            self._board.evaluated.remote(NO_MORE)
            reason = str(error).strip().splitlines()[:1]
            self._display.note(
                f"evaluations during training have ended ({': '.join([type(error).__name__, *reason])}); "
                "training continues without them"
            )
            log.exception("evaluations during training have ended")

    def _evaluate_all(self) -> None:
        while not self._given_up.is_set():
            ended = self._ended.is_set()  # checked first, so that nothing written before it is missed
            waiting = self._waiting()
            if waiting:
                self._evaluate(waiting[0])
            elif ended:
                return
            else:
                self._ended.wait(_POLL_S)

    def _waiting(self) -> list[Path]:
        """Whole snapshots that are not evaluated yet, earliest first. Removes those that training wrote again
        after going back."""
        evaluated = {snapshot_folder(self._folder, record.images) for record in self._records}
        for path in evaluated:
            if (path / CARD).is_file():
                shutil.rmtree(path, ignore_errors=True)
        known = evaluated | self._failed
        found = sorted((self._folder.path / "snapshots").glob("images-*"))
        return [path for path in found if (path / CARD).is_file() and path not in known]

    def _evaluate(self, snapshot: Path) -> None:
        images = int(snapshot.name.removeprefix("images-"))
        try:
            self._finish(snapshot, images)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong here, training continues
            self._failed.add(snapshot)
            reason = str(getattr(error, "cause", None) or error).strip().splitlines()[-1:]
            self._display.note(f"the evaluation at {images:,} images failed: {''.join(reason)}")
        self._board.evaluated.remote(images)

    def _finish(self, snapshot: Path, images: int) -> None:
        reached = (snapshot / CARD).stat().st_mtime
        last = images >= self._recipe.train.images
        report = self._result(_start(self._recipe, self._settings, self._folder, snapshot, keep_blocks=last))
        if report is None:
            return
        found = [*self._records, _record(images, reached, report)]
        # The best first: what is on record is not evaluated again, so a copy that a kill cut short would
        # never be made.
        try:
            self._keep_best(snapshot, images, found)
        except OSError as error:  # a full disk: the figures still count
            self._display.note(f"the model at {images:,} images, the best so far, was not kept: {error}")
        self._records = sorted(found, key=lambda record: record.images)
        self._folder.write_json(DURING, [asdict(found) for found in self._records])
        self._say(images, report)
        self._warn(report)
        self._look_for_collapse(images, report)
        shutil.rmtree(snapshot, ignore_errors=True)
        self._decide()

    def _result(self, task: Any) -> EvaluationReport | None:
        """The task's report; None if training has failed meanwhile, which ends the task."""
        while True:
            done, _ = ray.wait([task], timeout=_POLL_S)
            if done:
                found: EvaluationReport = ray.get(task)
                return found
            if self._given_up.is_set():
                ray.cancel(task, force=True)
                return None

    def _say(self, images: int, report: EvaluationReport) -> None:
        comparable = self._settings.samples == self._recipe.evaluate.samples
        prefix = "eval" if comparable else f"eval_{self._settings.samples}"
        assert self._tracker is not None
        self._tracker.metrics(figures_of(report, prefix), step=images)
        self._tracker.tags(report.tags())
        shown = "  ".join(f"{name} {value:.4g}" for name, value in report.metrics.items())
        self._display.line(f"evaluate: at {images:,} images  {shown}")

    def _warn(self, report: EvaluationReport) -> None:
        """Say, once, that a weak figure decides nothing."""
        evaluate = self._recipe.evaluate
        chosen = {"evaluate.best": evaluate.best, "evaluate.early_stop": evaluate.early_stop}
        for field_name, choice in chosen.items():
            if (
                choice is None
                or self._warned
                or choice.metric not in report.metrics.keys() - report.fit.keys()
            ):
                continue
            self._warned = True
            fix = "take evaluate.features=efficientnet_lite0 or more samples"
            self._display.note(refusal(field_name, choice.metric, report.marks[choice.metric], fix=fix))

    def _look_for_collapse(self, images: int, report: EvaluationReport) -> None:
        """Warn of figures beyond `evaluate.collapse`, in the log, on the run, and as a curve of 0 and 1."""
        limits = self._recipe.evaluate.collapse
        if limits is None or images < limits.start_images:
            return
        found = signs(report.metrics, limits)
        assert self._tracker is not None
        self._board.collapse.remote(bool(found))
        self._tracker.metrics({"eval/collapse": float(bool(found))}, step=images)
        if found:
            self._tracker.tags({"sfumato.collapse": f"at {images} images: {'; '.join(found)}"[:500]})
            self._display.note(f"mode collapse at {images:,} images: {'; '.join(found)}")

    def _keep_best(self, snapshot: Path, images: int, records: Sequence[EvaluationRecord]) -> None:
        choice = self._recipe.evaluate.best or self._recipe.evaluate.early_stop
        if choice is None:
            return
        best = best_of([record.point(self._recipe.evaluate) for record in records], choice)
        if best is None or best.images != images:
            return
        _replace(snapshot, self._folder.path / BEST)
        about = {"images": images, "metric": choice.metric, "value": best.metrics[choice.metric]}
        self._folder.write_json("best.json", about)
        assert self._tracker is not None
        self._tracker.tags({"sfumato.best_images": images, "sfumato.best_metric": choice.metric})
        self._keep_checkpoint(images, choice.metric, best.metrics[choice.metric])

    def _keep_checkpoint(self, images: int, metric: str, value: float) -> None:
        """The checkpoint of the same images, if it still exists, stays: training can resume from it."""
        store = open_store(self._folder.checkpoint_uri(self._recipe))
        with contextlib.suppress(CheckpointError, FileNotFoundError):  # removed meanwhile: training continues
            name = next((saved.name for saved in complete(store) if saved.images == images), None)
            if name is not None:
                mark_best(store, name, metric=metric, value=value)

    def _decide(self) -> None:
        if reason := early_end(self._recipe.evaluate, self._records):
            self._board.stop.remote(reason)


def _record(images: int, reached: float, report: EvaluationReport) -> EvaluationRecord:
    return EvaluationRecord(
        images,
        reached,
        report.samples,
        dict(report.metrics),
        dict(report.higher_is_better),
        {name: dict(found) for name, found in report.intervals.items()},
        time.time(),
        {name: list(marks) for name, marks in report.marks.items()},
    )


def _start(
    recipe: Recipe, settings: EvaluateSettings, folder: RunFolder, snapshot: Path, *, keep_blocks: bool
) -> Any:
    """The task; with one actor it does the work itself, with several it directs them."""
    alone = settings.actors_during == 1
    work: Any = ray.remote(_evaluate_snapshot).options(
        num_cpus=settings.cpus_per_actor if alone else 1.0,
        num_gpus=settings.gpus_per_actor if alone else 0.0,
        max_retries=2,
        scheduling_strategy="DEFAULT",  # not among the resources of a trial, where a sweep calls
    )
    evaluation = Evaluation.of_model(
        settings.model_copy(update={"actors": 0}) if alone else settings,
        model_folder=snapshot,
        reference=PackedReference(recipe.data.path, recipe.data.on_error),
        out=folder.path / "evaluation" / snapshot.name,
        cache=Path(recipe.storage) / CACHE,
        blocks=folder.path / "evaluation",
        trust=True,
    )
    return work.remote(evaluation, keep_blocks)


def _evaluate_snapshot(evaluation: Evaluation, keep_blocks: bool) -> EvaluationReport:
    """Runs in the task. Blocks of the last snapshot stay: the evaluation after training resumes from them."""
    report = evaluate(evaluation)
    if not keep_blocks:
        shutil.rmtree(evaluation.blocks_folder / report.blocks, ignore_errors=True)
    return report


def _replace(source: Path, target: Path) -> None:
    """A copy of a folder in place of another; killed in between, the copy is whole under another name."""
    draft = target.with_name(f".{target.name}-{time.time_ns():x}")
    shutil.copytree(source, draft)
    shutil.rmtree(target, ignore_errors=True)
    draft.rename(target)

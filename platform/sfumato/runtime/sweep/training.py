"""A trial in its process: a run like that of `sfumato train`, in a thread, and its reports.

The reports are the points of the metric's curve: of training when they are logged, of evaluations when they
end. The last one is held back until the run is complete and its model exported.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from rich.console import Console

from sfumato.errors import SfumatoError, WorkersLost
from sfumato.recipe import Recipe
from sfumato.runtime.commands import stages
from sfumato.runtime.runs.child import Child
from sfumato.runtime.runs.display import Display
from sfumato.runtime.runs.run_folder import RunFolder
from sfumato.runtime.runs.session import open_session, prepared
from sfumato.runtime.sweep.sweep_plan import SweepPlan
from sfumato.runtime.training.controller_handle import unpacked
from sfumato.runtime.training.progress_actor import Snapshot
from sfumato.runtime.training.validation import read_records
from sfumato.tuning.journal import Report

_POLL_S = 0.25
_ABORT_S = 20.0
_START_S = 60.0
"""How long a stopped trial may take to reach a point where it can be ended."""
PROGRESS = "progress.json"
FAILURE = "failure.json"
_REPORTED = "reported.json"
_LIFE = "running"
"""This file exists while a process trains the trial."""
_FORMER_S = 30.0

Result = dict[str, Any]


class TrialRun:
    """Trains a trial and returns its reports, one per call of `next_result`."""

    def __init__(self, plan: SweepPlan, number: int, values: Mapping[str, Any]) -> None:
        self._plan = plan
        self._number = number
        self._recipe = plan.recipe(number, values)
        self._values = dict(values)
        self.folder = plan.folder(number)
        known = self.folder.read_json(_REPORTED)
        self._last = Report(**known) if known else None
        self._points: list[Report] = []
        self._metrics: set[str] = set()
        self._first: set[str] | None = None
        self._controller: Any = None
        self._error: Exception | None = None
        self._given_up = ""
        (self.folder.path / FAILURE).unlink(missing_ok=True)
        wait_for_former(self.folder)
        self.folder.write_text(_LIFE, "")
        self._said = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"trial-{number}", daemon=True)
        self._thread.start()

    @property
    def last_images(self) -> int:
        return self._last.images if self._last else 0

    @property
    def last_value(self) -> float:
        return self._last.value if self._last else float("nan")

    def running(self) -> bool:
        return not self._ended.is_set()

    def next_result(self) -> Result:
        """The next report in Tune's form; the last has `done`. Raises RuntimeError if a retry may help."""
        total = self._recipe.train.images
        while True:
            ended = self._ended.is_set()  # looked at first: what was reported before it is not missed
            fresh = self._fresh()
            if self._first is not None and self._plan.metric not in self._first:
                return {**self._nothing(), "missing": sorted(self._first | self._metrics)}
            if self._error is not None and ended:
                return self._failed(self._error)
            if len(fresh) > 1 or (fresh and not ended and fresh[0].images < total):
                return self._report(fresh[0])
            if ended:
                return self._finished(fresh)
            if self._plan.stop_file.exists():
                return {**self._nothing(), "held": True}
            self._ended.wait(_POLL_S)

    def give_up(self, reason: str) -> None:
        """End the run and free its resources: its workers and running evaluations, at once."""
        self._given_up = reason
        start = time.monotonic()
        while self.running() and self._controller is None and time.monotonic() - start < _START_S:
            time.sleep(_POLL_S)
        if self.running() and self._controller is not None:
            try:
                ray.get(self._controller.abort.remote(), timeout=_ABORT_S)
            except ray.exceptions.RayError:  # it ends its process, which is how such a call returns
                if self.running():
                    ray.kill(self._controller)
        self._thread.join(_ABORT_S)

    def _run(self) -> None:
        log = self.folder.logs / "trial.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with log.open("a") as file:
                self._train(Display(Console(file=file, width=200, highlight=False)))
        except Exception as error:  # noqa: BLE001 - told to Tune by the next result
            self._error = error
        finally:
            self._release()
            (self.folder.path / _LIFE).unlink(missing_ok=True)
            self._ended.set()

    def _release(self) -> None:
        """Board and controller refer to each other, so Ray would keep both while this process lives."""
        if self._controller is not None:
            ray.kill(self._controller)

    def _train(self, display: Display) -> None:
        if self.folder.read_json("run.json") is not None:  # weights that were handed over bring a new recipe
            self.folder.update_json("run.json", recipe_digest=self._recipe.digest())
        tags = {"sfumato.kind": "trial", "sfumato.trial": str(self._number)}
        child = Child(self.folder, self._plan.parent, tags)
        with open_session(self._recipe, display, root=Path(self._plan.root), child=child) as session:
            try:
                stages.train(session, watch=self._watch)
            except Exception:
                if not self._given_up:
                    raise
                display.note(self._given_up)

    def _watch(self, snapshot: Snapshot) -> None:
        """Called repeatedly from a thread of the run."""
        if self._controller is None and snapshot.controller is not None:
            self._controller = unpacked(snapshot.controller)
        if not snapshot.metrics:
            return
        self._metrics |= set(snapshot.metrics)
        if self._plan.metric.startswith("train/"):
            self._first = self._first or set(snapshot.metrics)
            value = snapshot.metrics.get(self._plan.metric)
            if value is not None and snapshot.images > (self._points[-1].images if self._points else 0):
                self._points.append(Report(snapshot.images, value))
        if time.monotonic() - self._said > 1.0:
            self._said = time.monotonic()
            self.folder.write_json(PROGRESS, {"images": snapshot.images})

    def _fresh(self) -> list[Report]:
        """Reports that are not returned yet, earliest first."""
        points = self._points if self._plan.metric.startswith("train/") else self._evaluated()
        return [point for point in points if point.images > self.last_images]

    def _evaluated(self) -> list[Report]:
        prefix, _, name = self._plan.metric.partition("/")
        found = []
        for record in read_records(self.folder):
            own = "eval" if record.samples == self._recipe.evaluate.samples else f"eval_{record.samples}"
            self._first = self._first or {f"{own}/{metric}" for metric in record.metrics}
            if own == prefix and name in record.metrics:
                found.append(Report(record.images, record.metrics[name]))
        return found

    def _report(self, report: Report, **content: Any) -> Result:
        self._last = report
        self.folder.write_json(_REPORTED, {"images": report.images, "value": report.value})
        return {"images": report.images, "objective": report.value, **content}

    def _finished(self, fresh: list[Report]) -> Result:
        last = fresh[-1] if fresh else self._last
        if last is None:
            known = ", ".join(sorted(self._metrics)) or "none at all"
            return {
                **self._nothing(),
                "failed": f"{self._plan.metric} was never reported; there are: {known}",
            }
        return self._report(last, done=True, finished=True)

    def _failed(self, error: Exception) -> Result:
        """Failures that no retry can fix become results; others are raised, and Tune retries."""
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, SfumatoError) and not isinstance(error, WorkersLost):
            return {**self._nothing(), "failed": reason}
        self.folder.write_json(FAILURE, {"reason": reason})
        raise RuntimeError(reason) from error

    def _nothing(self) -> Result:
        return {"images": self.last_images, "objective": float("nan"), "done": True}


def wait_for_former(folder: RunFolder) -> None:
    """Wait until an earlier process of this trial has ended: its writes would be taken for ours.

    A killed process cannot report its end; its workers end well within the waiting time.
    """
    end = time.monotonic() + _FORMER_S
    while (folder.path / _LIFE).exists() and time.monotonic() < end:
        time.sleep(_POLL_S)


def forget_former(plan: SweepPlan, number: int) -> None:
    """After the driver was killed, no process trains the trial."""
    (plan.folder(number).path / _LIFE).unlink(missing_ok=True)


def recipe_of(plan: SweepPlan, number: int, values: Mapping[str, Any]) -> Recipe:
    """A trial's recipe with all paths and digests resolved, as in its own process."""
    quiet = Display(Console(quiet=True))
    return prepared(plan.recipe(number, values), quiet, root=Path(plan.root))[0]


def forget_reports(plan: SweepPlan, number: int, images: int, value: float) -> None:
    """A trial's reports from before it took over another's weights, which have seen `images`."""
    folder = plan.folder(number)
    folder.write_json(_REPORTED, {"images": images, "value": value})
    known = folder.read_json("evaluation/during.json")
    if known is not None:
        folder.write_json("evaluation/during.json", [r for r in known if r["images"] <= images])

"""A call at work on a pipeline, on the connected cluster.

It examines stages as what they need is finished, and starts those that have to run. A stage that fails stops
what depends on it and nothing else.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import torch

from sfumato.errors import SfumatoError
from sfumato.runtime.pipeline import graph, relay, schedule
from sfumato.runtime.pipeline.parent import Parent
from sfumato.runtime.pipeline.plan import Step, examine, inputs_of
from sfumato.runtime.pipeline.records import Records, StageRecord
from sfumato.runtime.pipeline.result import Result
from sfumato.runtime.pipeline.schedule import Demand
from sfumato.runtime.pipeline.settings import Pipeline
from sfumato.runtime.pipeline.stage import Outputs, digest
from sfumato.runtime.pipeline.stage_process import Failure, Order, start
from sfumato.runtime.runs.display import Display

_POLL_S = 0.3
_PATIENCE_S = 20.0


class Call:
    """The stages of one call: which are finished, running, failed."""

    def __init__(self, pipeline: Pipeline, records: Records, display: Display, parent: Parent) -> None:
        self._pipeline = pipeline
        self._records = records
        self._display = display
        self._parts = {name: display.part(name) for name in pipeline.order}
        self._parent = parent
        self._relay = relay.create()
        self._room = _room()
        self._steps: dict[str, Step] = {}
        self._demands: dict[str, Demand] = {}
        self._running: dict[Any, tuple[str, float]] = {}
        self.result = Result(parent=parent.run_id)

    def work(self) -> Result:
        with self._cancelled_if_interrupted():
            while True:
                self._examine()
                self._start()
                if not self._running:
                    break
                self._wait()
        for name in self._pipeline.order:
            if cause := self._failed_before(name):
                self.result.blocked[name] = cause
                self._display.failed(name, f"not run, because {cause} failed")
        return self.result

    def _examine(self) -> None:
        """Examine every stage whose dependencies are now finished: finished earlier, or about to run."""
        outputs = self.result.outputs
        for name in self._pipeline.order:
            known = name in self._steps or name in self.result.failed
            if known or not self._pipeline.needs[name] <= outputs.keys():
                continue
            try:
                step = examine(self._pipeline, self._records, name, outputs)
                if step.settings is not None:
                    self._demands[name] = step.settings.demand(self._pipeline.place)
            except SfumatoError as error:
                self._fail(name, str(error))
                continue
            self._steps[name] = step
            if step.record is not None:
                self._display.skipped(name, "done before")
                outputs[name] = step.record.outputs
                self._parent.done(name, step.record.outputs, None)
            else:
                self._parts[name].line(f"runs: {step.why}")

    def _start(self) -> None:
        running = {name: self._demands[name] for name, _ in self._running.values()}
        waiting = {
            name: self._demands[name]
            for name, step in self._steps.items()
            if step.state == "run" and name not in running | self.result.outputs | self.result.failed
        }
        at_once = self._pipeline.settings.at_once
        for name in schedule.startable(waiting, running, room=self._room, at_once=at_once):
            self._running[self._ordered(name)] = (name, time.monotonic())

    def _ordered(self, name: str) -> Any:
        settings = self._steps[name].settings
        assert settings is not None
        latest = self._records.latest(name)
        begun = self._records.begun(name)
        order = Order(
            name=name,
            pipeline=self._pipeline.settings.name,
            settings=settings,
            place=self._pipeline.place,
            state=str(self._pipeline.state / "work" / name),
            parent=self._parent.run_id,
            before=None if latest is None else latest.outputs,
            again=self._records.again(name),
            at=None if begun is None else str(begun),
            threads=torch.get_num_threads(),
        )
        return start(order, self._relay)

    def _wait(self) -> None:
        """Until a stage ends, or some time has passed; show what the stages said."""
        ended, _ = ray.wait(list(self._running), timeout=_POLL_S)
        self._tell()
        for reference in ended:
            name, began = self._running.pop(reference)
            try:
                made = ray.get(reference)
            except ray.exceptions.RayError as error:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                made = Failure(f"its process ended ({reason}); out of memory?")
            if isinstance(made, Failure):
                self._fail(name, made.message)
            else:
                self._finish(name, made, time.monotonic() - began)

    def _finish(self, name: str, outputs: Outputs, seconds: float) -> None:
        step = self._steps[name]
        assert step.settings is not None
        inputs = step.inputs or inputs_of(self._pipeline, name, step.settings, self.result.outputs)
        assert inputs is not None, "what a stage read is there once it has run"
        self._records.finish(name, StageRecord(digest(inputs), inputs, outputs, seconds, time.time()))
        self.result.outputs[name] = outputs
        self.result.ran[name] = seconds
        self._parent.done(name, outputs, seconds)

    def _fail(self, name: str, message: str) -> None:
        self._parts[name].drop()
        self._display.failed(name, message)
        self.result.failed[name] = message

    def _failed_before(self, name: str) -> str | None:
        """The failed stage that kept this one from running."""
        if name in self.result.failed or name in self.result.outputs:
            return None
        return next(
            other for other in self.result.failed if name in graph.after(self._pipeline.needs, [other])
        )

    def _tell(self) -> None:
        for said in ray.get(self._relay.take.remote()):
            if said.method == "began":
                self._records.began(said.stage, Path(said.arguments[0]))
            else:
                getattr(self._parts[said.stage], said.method)(*said.arguments)

    @contextlib.contextmanager
    def _cancelled_if_interrupted(self) -> Iterator[None]:
        """Ctrl-C reaches the stages, which shut down cleanly: runs are closed and files complete."""
        try:
            yield
        except BaseException:
            for reference in self._running:
                ray.cancel(reference)
            if self._running:
                ray.wait(list(self._running), num_returns=len(self._running), timeout=_PATIENCE_S)
            raise


def _room() -> Demand:
    import ray

    have = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return Demand(have.get("CPU", 0.0), have.get("GPU", 0.0))

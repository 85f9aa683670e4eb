"""The pipeline's own run in MLflow: parent of the runs of its stages, with what they took and measured."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from sfumato.errors import ConfigError
from sfumato.runtime.pipeline.records import Records
from sfumato.runtime.pipeline.settings import Pipeline
from sfumato.runtime.pipeline.stage import Outputs
from sfumato.tracking.config import TrackingSettings
from sfumato.tracking.run import Status, Tracker

FILE = "pipeline.yaml"


class Parent:
    """One call's handle of the parent run. A call that resumes an interrupted one resumes its run."""

    def __init__(self, tracker: Tracker, records: Records) -> None:
        self._tracker = tracker
        self._records = records
        self._status: Status = "FAILED"

    @classmethod
    @contextlib.contextmanager
    def open(cls, pipeline: Pipeline, records: Records) -> Iterator[Parent]:
        """The run, made or opened again; it ends as FAILED unless `complete` is called in the block."""
        parent = cls(_tracker(pipeline, records), records)
        records.set_parent(parent.run_id, complete=False)
        try:
            yield parent
        except KeyboardInterrupt:
            parent._status = "KILLED"
            raise
        finally:
            parent._tracker.finish(parent._status)

    @property
    def run_id(self) -> str:
        return self._tracker.run_id

    def done(self, stage: str, outputs: Outputs, seconds: float | None) -> None:
        """Record a finished stage; `seconds` is None if an earlier call finished it."""
        run = outputs.get("mlflow_run_id")
        self._tracker.tags(
            {f"sfumato.stage.{stage}": run or "", f"sfumato.digest.{stage}": outputs["digest"]}
        )
        figures = {f"{stage}/{name}": value for name, value in outputs.get("metrics", {}).items()}
        if seconds is not None:
            figures[f"{stage}/seconds"] = seconds
        self._tracker.metrics(figures, step=int(time.time() - self._tracker.handle.started))

    def complete(self) -> None:
        """All stages are finished: a later call that has work to do gets a new run."""
        self._status = "FINISHED"
        self._records.set_parent(self.run_id, complete=True)


def _tracker(pipeline: Pipeline, records: Records) -> Tracker:
    settings = pipeline.settings.tracking or TrackingSettings()
    content = pipeline.settings.model_dump(mode="json", exclude_defaults=True)
    file = Path(records.folder) / FILE
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    stages = content.pop("stages")
    content.pop("tracking", None)
    begin: dict[str, Any] = {
        "root": pipeline.place.root,
        "folder": records.folder,
        "run_name": pipeline.settings.name,
        "params": {**content, "stages": {name: stage["kind"] for name, stage in stages.items()}},
        "tags": {"sfumato.pipeline": pipeline.settings.name, "sfumato.kind": "pipeline"},
    }
    try:
        tracker = Tracker.start(settings, **begin, run_id=records.parent)
    except ConfigError:
        if records.parent is None:
            raise
        tracker = Tracker.start(settings, **begin)  # the old one was deleted
    tracker.artifact(file)
    return tracker

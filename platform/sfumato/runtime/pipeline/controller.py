"""Runs a pipeline: skips finished stages and runs the others on a cluster, joined or opened for it.

Finished stages are recorded before another one starts, so the next call resumes after an interruption at any
moment.
"""

from __future__ import annotations

import math
import os

from sfumato.runtime.cluster import forking, ray_cluster
from sfumato.runtime.pipeline import schedule
from sfumato.runtime.pipeline.parent import Parent
from sfumato.runtime.pipeline.plan import Step, again_from, plan
from sfumato.runtime.pipeline.records import Records
from sfumato.runtime.pipeline.result import Result
from sfumato.runtime.pipeline.schedule import Demand
from sfumato.runtime.pipeline.settings import Pipeline
from sfumato.runtime.runs.display import Display


def run(pipeline: Pipeline, display: Display, *, first: str | None = None) -> Result:
    """Run all stages to completion; rerun `first` and everything that depends on it.

    Raises ConfigError for wrong inputs before anything is started. Failed stages are in the result.
    """
    records = Records(pipeline.state)
    again = again_from(pipeline, first)
    steps = plan(pipeline, records, again)
    with records.locked():
        records.order_again(again)
        if all(step.state == "done" for step in steps):
            return _shown(steps, display)
        demands = [pipeline.stage(name, {}).demand(pipeline.place) for name in pipeline.order]
        room = schedule.room_for(demands, pipeline.settings.at_once)
        with (
            ray_cluster.workers_ready(forking.TRAINING),
            Parent.open(pipeline, records) as parent,
            ray_cluster.cluster(_cpus(demands, room), pipeline.state / "logs", gpus=room.gpus),
        ):
            from sfumato.runtime.pipeline.call import Call  # Ray reads its variables when it is imported

            result = Call(pipeline, records, display, parent).work()
            if not result.failed:
                parent.complete()
            return result


def _shown(steps: list[Step], display: Display) -> Result:
    result = Result()
    for step in steps:
        assert step.record is not None
        display.skipped(step.name, "done before")
        result.outputs[step.name] = step.record.outputs
    return result


def _cpus(demands: list[Demand], room: Demand) -> int:
    """CPUs that the cluster must have: one that is there for the largest stage, our own for all at once."""
    joined = bool(os.environ.get("RAY_ADDRESS"))
    return max(1, math.ceil(max(demand.cpus for demand in demands) if joined else room.cpus))

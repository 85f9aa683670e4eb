"""Runs a stage in its own process: a Ray task on the driver's node, which ends with the driver.

The task takes no CPU itself; its workers and actors take theirs from the cluster, where the driver's schedule
has made sure of room. Errors travel as values: Ray would bury them in tracebacks.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch

from sfumato.errors import SfumatoError
from sfumato.runtime.pipeline.place import PipelinePlace
from sfumato.runtime.pipeline.relay import RelayDisplay
from sfumato.runtime.pipeline.stage import Outputs, StageSettings, Work
from sfumato.tracking.config import TrackingSettings
from sfumato.tracking.run import Tracker


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The instructions of a stage's process: plain, serialisable data."""

    name: str
    pipeline: str
    settings: StageSettings
    place: PipelinePlace
    state: str
    """The stage's own folder in the pipeline's state."""
    parent: str
    """The pipeline's run in MLflow."""
    before: Outputs | None
    again: bool
    at: str | None
    threads: int
    """Torch threads, as many as the driver has: Ray would let a task without CPUs have one."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a stage failed, in readable form."""

    message: str


def start(order: Order, relay: Any) -> Any:
    """Start a stage; returns a reference to its outputs, or to a Failure."""
    here = ray.get_runtime_context().get_node_id()
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=False)
    task: Any = ray.remote(_work).options(num_cpus=0, max_retries=0, scheduling_strategy=strategy)
    return task.remote(order, relay)


def _work(order: Order, relay: Any) -> Outputs | Failure:
    display = RelayDisplay(relay, order.name)
    torch.set_num_threads(order.threads)
    try:
        with contextlib.chdir(order.place.root):
            return _tracked(order, display)
    except SfumatoError as error:
        return Failure(str(error))
    except Exception as error:  # noqa: BLE001 - a defect in one stage must not end the others
        reason = (str(error).strip().splitlines() or [""])[0]
        return Failure(f"{type(error).__name__}: {reason}")


def _tracked(order: Order, display: RelayDisplay) -> Outputs:
    """A stage that works on a recipe's run tags that run; any other gets a small run of its own."""
    tags = {"sfumato.pipeline": order.pipeline, "sfumato.stage": order.name}
    parent = {"mlflow.parentRunId": order.parent}
    work = Work(
        place=order.place,
        display=display,
        before=order.before,
        again=order.again,
        at=None if order.at is None else Path(order.at),
        began=display.began,
        tags={**tags, **parent},
    )
    if order.settings.OWN_RUN:
        return order.settings.perform(work)
    settings = order.place.tracking or TrackingSettings()
    with Tracker.start(
        settings,
        root=order.place.root,
        folder=Path(order.state),
        run_name=f"{order.pipeline}-{order.name}",
        params=order.settings.model_dump(mode="json", exclude_defaults=True),
        tags={**tags, "sfumato.kind": order.settings.kind},
        parent=order.parent,
    ) as tracker:
        outputs = order.settings.perform(work)
        tracker.metrics(figures(outputs), step=0)
        tracker.tags({"sfumato.digest": outputs["digest"]})
    return {**outputs, "mlflow_run_id": tracker.run_id}


def figures(outputs: Outputs) -> dict[str, float]:
    """The numbers among a stage's outputs, by name."""
    flat = {**outputs, **outputs.get("metrics", {})}
    return {
        name: float(value)
        for name, value in flat.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }

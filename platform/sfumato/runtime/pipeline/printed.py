"""What `sfumato run PIPELINE` prints: its plan, or its results."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from sfumato.errors import SfumatoError
from sfumato.runtime.pipeline.plan import Step
from sfumato.runtime.pipeline.result import Result
from sfumato.runtime.pipeline.settings import Pipeline


def show_plan(pipeline: Pipeline, steps: list[Step], *, as_json: bool) -> None:
    """One row per stage: whether it is finished, and why it would run."""
    if as_json:
        stages = {step.name: {"kind": step.kind, "state": step.state, "why": step.why} for step in steps}
        print(json.dumps({"pipeline": pipeline.settings.name, "stages": stages}))
        return
    table = _table(f"plan of {pipeline.settings.name}; nothing was started")
    for step in steps:
        table.add_row(step.name, step.kind, step.state, step.why)
    Console(markup=False).print(table)


def show(pipeline: Pipeline, result: Result, *, as_json: bool) -> None:
    """One row per stage with its result. Raises SfumatoError naming the stages that failed."""
    if as_json:
        print(json.dumps(_as_data(pipeline, result)))
    else:
        table = _table(f"pipeline {pipeline.settings.name}")
        for name in pipeline.order:
            kind = str(pipeline.settings.stages[name]["kind"])
            table.add_row(name, kind, _state(result, name), _about(result.outputs.get(name, {})))
        Console(markup=False).print(table)
    if result.failed:
        lines = [f"stage {name} failed: {reason.splitlines()[0]}" for name, reason in result.failed.items()]
        raise SfumatoError("\n".join([*lines, "fix this and run the same command again to resume"]))


def _as_data(pipeline: Pipeline, result: Result) -> dict[str, Any]:
    stages = {
        name: {
            "kind": pipeline.settings.stages[name]["kind"],
            "state": _state(result, name),
            "seconds": result.ran.get(name),
            "error": result.failed.get(name),
            "outputs": result.outputs.get(name),
        }
        for name in pipeline.order
    }
    return {"pipeline": pipeline.settings.name, "mlflow_run_id": result.parent, "stages": stages}


def _state(result: Result, name: str) -> str:
    if name in result.failed:
        return "failed"
    if name in result.blocked:
        return "not run"
    return f"{result.ran[name]:.0f} s" if name in result.ran else "done before"


def _about(outputs: dict[str, Any]) -> str:
    """A short description of a stage's output."""
    parts = []
    if "samples" in outputs and "data" in outputs:
        parts.append(f"{outputs['samples']:,} samples in {outputs['data']}")
    if "images" in outputs:
        parts.append(f"{outputs['images']:,} images, {outputs['run']}")
    if "metrics" in outputs:
        parts.append(", ".join(f"{name} {value:.4g}" for name, value in outputs["metrics"].items()))
    if "version" in outputs:
        parts.append(f"{outputs['name']} version {outputs['version']}")
    if outputs.get("alias"):
        parts.append(f"as {outputs['alias']}")
    return "; ".join(parts)


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("stage", "kind", "state", ""):
        table.add_column(column, overflow="fold")
    return table

"""Prints the results at the end of a run's command."""

from __future__ import annotations

import json
from typing import Any

from sfumato.evaluation import weakness
from sfumato.runtime.runs.session import Session


def show(session: Session, results: dict[str, Any], *, as_json: bool) -> None:
    """A short table, the place of the pictures, and how to open the UI; or all of it as JSON."""
    grid = session.folder.path / "samples" / "grid.png"
    summary = {
        "run": session.folder.id,
        "folder": str(session.folder.path),
        "mlflow_run_id": session.tracker.run_id or None,
        "grid": str(grid) if grid.is_file() else None,
        **results,
    }
    if as_json:
        print(json.dumps(summary))
        return
    display = session.display
    display.table(f"run {session.folder.id}", _rows(results))
    for line in weak_lines(results.get("evaluate", {})):
        display.note(line)
    if summary["grid"]:
        display.line(f"samples   {grid}")
    if session.tracker.run_id:
        display.line("compare   sfumato ui")


def figures(evaluated: dict[str, Any]) -> dict[str, str]:
    """An evaluation as rows: every figure with its interval, the number of images, the cost per image."""
    rows = {}
    for name, value in evaluated["metrics"].items():
        low_high = evaluated.get("intervals", {}).get(name)
        reach = f"  ({low_high[0]:.4f} to {low_high[1]:.4f})" if low_high else ""
        rows[name] = f"{value:.4f}{reach}" + ("  weak" if name in evaluated.get("weak", {}) else "")
    rows[evaluated.get("kind", "samples")] = f"{evaluated['samples']:,}"
    return rows


def weak_lines(evaluated: dict[str, Any]) -> list[str]:
    """What to know about figures that say little; one line each."""
    return [f"weak: {line}" for line in weakness.lines(evaluated.get("weak", {}))]


def _rows(results: dict[str, Any]) -> dict[str, str]:
    rows = {}
    if train := results.get("train"):
        rows["images"] = f"{train['images']:,}"
        rows["steps"] = f"{train['steps']:,}"
        rows["images/s"] = f"{train['images_per_second']:,.0f}"
        rows["training"] = f"{train['seconds']:.0f} s"
    if evaluated := results.get("evaluate"):
        rows |= figures(evaluated)
    if registered := results.get("register"):
        rows["model"] = f"{registered['name']} version {registered['version']}"
    return rows

"""Prints the results at the end of a run's command."""

from __future__ import annotations

import json
from typing import Any

from sfumato.evaluation.decisions import weakness
from sfumato.recipe import Recipe
from sfumato.runtime.runs.session import Session


def show(session: Session, results: dict[str, Any], *, as_json: bool) -> None:
    """A short table, the place of the pictures, and how to open the UI; or all of it as JSON."""
    if as_json:
        print(json.dumps(summary(session, results)))
        return
    show_table(session, results)
    if session.tracker.run_id:
        session.display.line("compare   sfumato ui")


def show_table(session: Session, results: dict[str, Any]) -> None:
    """The table and the place of the pictures."""
    session.display.table(f"run {session.folder.id}", _rows(session.recipe, results))
    for line in weak_lines(results.get("evaluate", {})):
        session.display.note(line)
    if grid := summary(session, results)["grid"]:
        session.display.line(f"samples   {grid}")


def summary(session: Session, results: dict[str, Any]) -> dict[str, Any]:
    """The results of the stages, and where everything is, as plain data."""
    grid = session.folder.path / "samples" / "grid.png"
    return {
        "run": session.folder.id,
        "folder": str(session.folder.path),
        "mlflow_run_id": session.tracker.run_id or None,
        "grid": str(grid) if grid.is_file() else None,
        **results,
    }


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


def images_of(recipe: Recipe) -> int:
    """How many images a whole training sees: `train.images`, rounded up to whole batches."""
    return -(-recipe.train.images // recipe.train.batch) * recipe.train.batch


def images_text(recipe: Recipe, images: int, unit: str = " images") -> str:
    """So many images and, where they are more than the recipe asks for, why."""
    asked, batch = recipe.train.images, recipe.train.batch
    if images <= asked:
        return f"{images:,}{unit}"
    return f"{images:,}{unit} ({asked:,} rounded up to whole batches of {batch:,})"


def _rows(recipe: Recipe, results: dict[str, Any]) -> dict[str, str]:
    rows = {}
    if train := results.get("train"):
        rows["images"] = images_text(recipe, train["images"], unit="")
        rows["steps"] = f"{train['steps']:,}"
        rows["images/s"] = f"{train['images_per_second']:,.0f}"
        rows["training"] = f"{train['seconds']:.0f} s"
    if evaluated := results.get("evaluate"):
        rows |= figures(evaluated)
    if registered := results.get("register"):
        rows["model"] = f"{registered['name']} version {registered['version']}"
    return rows

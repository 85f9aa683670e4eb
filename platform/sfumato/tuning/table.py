"""A sweep as a table, for the terminal during the sweep and at its end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from sfumato.tuning.journal import Trial, best_of

_COLOURS = {"finished": "green", "stopped": "yellow", "failed": "red", "running": "cyan", "waiting": "dim"}


def table(
    trials: Sequence[Trial],
    fields: Sequence[str],
    *,
    title: str,
    metric: str,
    mode: str,
    now: Mapping[int, int] | None = None,
) -> Table:
    """One row per trial. `now` has the images of running trials, newer than their last report."""
    best = best_of(trials, mode)
    found = Table(title=title, title_justify="left", header_style="bold")
    found.add_column("trial", justify="right")
    found.add_column("status")
    found.add_column("images", justify="right")
    found.add_column(metric, justify="right")
    for name in short(fields):
        found.add_column(name, overflow="fold")
    for trial in trials:
        images = max(trial.images, (now or {}).get(trial.number, 0) if trial.status == "running" else 0)
        last = trial.last
        found.add_row(
            f"{trial.number}{'*' if best is trial else ''}",
            f"[{_COLOURS[trial.status]}]{trial.status}[/]",
            f"{images:,}",
            "" if last is None else f"{last.value:.4g}",
            *(escape(shown(trial.values.get(field))) for field in fields),
            style="bold" if best is trial else "",
        )
    return found


def line(trial: Trial, fields: Sequence[str]) -> str:
    """A trial's values on one line."""
    names = short(fields)
    pairs = [
        f"{name}={shown(trial.values[field])}"
        for name, field in zip(names, fields, strict=True)
        if field in trial.values
    ]
    return "  ".join(pairs) or "the recipe as it stands"


def short(fields: Sequence[str]) -> list[str]:
    """Each dotted field by as few of its last parts as distinguish it."""
    names = []
    for field in fields:
        parts = field.split(".")
        for count in range(1, len(parts) + 1):
            name = ".".join(parts[-count:])
            if sum(other == name or other.endswith(f".{name}") for other in fields) == 1:
                break
        names.append(name)
    return names


def shown(value: Any) -> str:
    """A value as in a recipe, numbers with four digits."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return json.dumps(value, default=str) if isinstance(value, list | tuple | dict) else str(value)

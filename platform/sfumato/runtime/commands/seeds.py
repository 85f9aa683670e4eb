"""Several training seeds of one recipe: a run each, and their figures together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from sfumato.evaluation.compare.entries import Figure, over_seeds


@dataclass(frozen=True, slots=True)
class Finished:
    """One run: its seed, and what `sfumato run --json` prints of it."""

    seed: int
    summary: dict[str, Any]

    @property
    def metrics(self) -> dict[str, float]:
        """Figures by name."""
        return dict(self.summary["evaluate"]["metrics"])


def show(name: str, runs: Sequence[Finished], *, as_json: bool) -> None:
    """Mean and spread of every figure with those of each run, as a table or as one JSON object."""
    metrics = list(dict.fromkeys(metric for run in runs for metric in run.metrics))
    found = {metric: [run.metrics[metric] for run in runs if metric in run.metrics] for metric in metrics}
    if as_json:
        figures = {metric: {**asdict(over_seeds(of)), "values": of} for metric, of in found.items()}
        data = {"name": name, "seeds": [run.seed for run in runs], "metrics": figures}
        print(json.dumps({**data, "runs": [run.summary for run in runs]}))
        return
    console = Console(markup=False, highlight=False)
    console.print(_table(name, runs, {metric: over_seeds(of) for metric, of in found.items()}))
    words = " ".join(run.summary["run"] for run in runs)  # in the order of the columns
    console.print(f"compare   sfumato compare --group-seeds {words} RUN ...", soft_wrap=True)


def _table(name: str, runs: Sequence[Finished], figures: dict[str, Figure]) -> Table:
    table = Table(title=f"{name}: mean ± standard deviation of {len(runs)} seeds", title_justify="left")
    for column in ("", "mean ± spread", *(f"seed {run.seed}" for run in runs)):
        table.add_column(column, overflow="fold")
    for metric, figure in figures.items():
        spread = "" if figure.spread is None else f" ± {figure.spread:.2g}"
        each = (f"{run.metrics[metric]:.4g}" if metric in run.metrics else "–" for run in runs)
        table.add_row(metric, f"{figure.value:.4g}{spread}", *each)
    return table

"""The figures of all runs as cells: value, interval, the best, and whether it leads beyond noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sfumato.evaluation.compare.runs import EvaluatedRun, best_run, metric_names
from sfumato.evaluation.compare.significance import Difference, difference

ALPHA = 0.05


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure of one run. `against_best` compares it with the best run's, if it can be tested."""

    value: float | None
    low: float | None = None
    high: float | None = None
    best: bool = False
    against_best: Difference | None = None
    weak: Sequence[str] = ()
    """Why the figure says little."""

    @property
    def as_good(self) -> bool:
        """Not the best, but not distinguishable from it."""
        return self.against_best is not None and self.against_best.p > ALPHA

    @property
    def text(self) -> str:
        """`0.864 ± ...` in short form, for a terminal."""
        if self.value is None:
            return "–"
        mark = " *" if self.best else " ≈" if self.as_good else ""
        mark += " weak" if self.weak else ""
        reach = "" if self.low is None or self.high is None else f" ({self.low:.4g} to {self.high:.4g})"
        return f"{self.value:.4g}{reach}{mark}"


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of all runs."""

    metric: str
    higher_is_better: bool
    cells: Sequence[Cell]


def rows(runs: Sequence[EvaluatedRun], *, comparable: bool) -> list[Row]:
    """One row per figure. If the runs are not comparable, none is marked as best."""
    return [_row(runs, metric, comparable) for metric in metric_names(runs)]


def as_data(table: Sequence[Row], runs: Sequence[EvaluatedRun]) -> dict[str, Any]:
    """The same as plain JSON values: metric -> run -> value, interval, best, p against the best."""
    return {
        row.metric: {
            run.name: {
                "value": cell.value,
                "interval": None if cell.low is None else [cell.low, cell.high],
                "best": cell.best,
                "weak": list(cell.weak),
                "p_against_best": None if cell.against_best is None else cell.against_best.p,
                "test": None if cell.against_best is None else cell.against_best.method,
            }
            for run, cell in zip(runs, row.cells, strict=True)
        }
        for row in table
    }


def _row(runs: Sequence[EvaluatedRun], metric: str, comparable: bool) -> Row:
    best = best_run(runs, metric) if comparable else None
    higher = next(run.report.higher_is_better[metric] for run in runs if metric in run.report.metrics)
    return Row(metric, higher, [_cell(runs, index, metric, best) for index in range(len(runs))])


def _cell(runs: Sequence[EvaluatedRun], index: int, metric: str, best: int | None) -> Cell:
    report = runs[index].report
    if metric not in report.metrics:
        return Cell(None)
    found = report.intervals.get(metric)
    low, high = (None, None) if found is None else (float(str(found["low"])), float(str(found["high"])))
    if best is None or best == index or metric not in report.fit:
        tested = None
    else:
        tested = difference(runs[best], runs[index], metric)
    return Cell(report.metrics[metric], low, high, best == index, tested, report.marks.get(metric, ()))

"""The figures of all entries as cells: value, interval, the best, and whether it leads beyond noise.

Every entry is tested against the best of its row. The p values are Holm's for the whole table: the best was
chosen after looking, so any two entries might have been compared, in every row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sfumato.evaluation.compare.entries import Entry, difference_of
from sfumato.evaluation.compare.holm import holm
from sfumato.evaluation.compare.runs import metric_names, unequal_balls
from sfumato.evaluation.compare.significance import Difference

ALPHA = 0.05


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure of one entry. `against_best` compares it with the best entry's, if it can be tested; `p` is
    its p value, corrected for all tests of the table."""

    value: float | None
    low: float | None = None
    high: float | None = None
    seeds: int = 1
    spread: float | None = None
    best: bool = False
    against_best: Difference | None = None
    p: float | None = None
    weak: Sequence[str] = ()
    """Why the figure says little."""

    @property
    def as_good(self) -> bool:
        """Not the best, but not distinguishable from it."""
        return self.p is not None and self.p > ALPHA

    @property
    def text(self) -> str:
        """In short form, for a terminal: the value with its interval, or the mean ± the spread of seeds."""
        if self.value is None:
            return "–"
        mark = " *" if self.best else " ≈" if self.as_good else ""
        mark += " weak" if self.weak else ""
        if self.spread is not None:
            return f"{self.value:.4g} ± {self.spread:.2g}{mark}"
        reach = "" if self.low is None or self.high is None else f" ({self.low:.4g} to {self.high:.4g})"
        return f"{self.value:.4g}{reach}{mark}"


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of all entries."""

    metric: str
    higher_is_better: bool
    cells: Sequence[Cell]


def rows(entries: Sequence[Entry], *, comparable: bool) -> list[Row]:
    """One row per figure. If the runs, or their balls, are not comparable, none is marked as best."""
    runs = [run for entry in entries for run in entry.runs]
    unequal = unequal_balls(runs)
    table = [_row(entries, metric, comparable and metric not in unequal) for metric in metric_names(runs)]
    return _corrected(table) if comparable else table


def as_data(table: Sequence[Row], entries: Sequence[Entry]) -> dict[str, Any]:
    """The same as plain JSON values: metric -> entry -> value, interval, best, p against the best."""
    return {
        row.metric: {
            entry.name: {
                "value": cell.value,
                "interval": None if cell.low is None else [cell.low, cell.high],
                "seeds": cell.seeds,
                "spread": cell.spread,
                "best": cell.best,
                "weak": list(cell.weak),
                "p_against_best": cell.p,
                "p_uncorrected": None if cell.against_best is None else cell.against_best.p,
                "test": None if cell.against_best is None else cell.against_best.method,
            }
            for entry, cell in zip(entries, row.cells, strict=True)
        }
        for row in table
    }


def _row(entries: Sequence[Entry], metric: str, comparable: bool) -> Row:
    runs = (run for entry in entries for run in entry.runs)
    higher = next(run.report.higher_is_better[metric] for run in runs if metric in run.report.metrics)
    found = [entry.figure(metric) for entry in entries]
    fit = [entry.fit(metric) for entry in entries]
    values = {place: figure.value for place, figure in enumerate(found) if figure is not None and fit[place]}
    best = None
    if comparable and len(values) > 1:
        best = (max if higher else min)(values, key=lambda place: values[place])
    cells = []
    for place, figure in enumerate(found):
        if figure is None:
            cells.append(Cell(None))
            continue
        tested = None
        if best is not None and best != place and fit[place]:
            tested = difference_of(entries[best], entries[place], metric)
        cells.append(
            Cell(
                figure.value,
                figure.low,
                figure.high,
                figure.seeds,
                figure.spread,
                best=best == place,
                against_best=tested,
                weak=entries[place].weak(metric),
            )
        )
    return Row(metric, higher, cells)


def _corrected(table: Sequence[Row]) -> list[Row]:
    """With Holm's p values."""
    having = [sum(cell.value is not None for cell in row.cells) for row in table]
    pairs = sum(number * (number - 1) // 2 for number in having)
    p = [cell.against_best.p for row in table for cell in row.cells if cell.against_best is not None]
    adjusted = iter(holm(p, pairs))
    return [
        replace(
            row,
            cells=[
                cell if cell.against_best is None else replace(cell, p=next(adjusted)) for cell in row.cells
            ],
        )
        for row in table
    ]

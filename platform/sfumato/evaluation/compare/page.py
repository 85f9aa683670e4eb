"""The comparison as one self-contained HTML file, including plots and pictures."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from sfumato import __version__
from sfumato.evaluation.compare import figures
from sfumato.evaluation.compare.differences import differences
from sfumato.evaluation.compare.entries import Entry
from sfumato.evaluation.compare.guidance import trade_offs
from sfumato.evaluation.compare.runs import EvaluatedRun, obstacles, paired, unequal_balls, weak_figures
from sfumato.evaluation.compare.table import Row
from sfumato.evaluation.pictures import NEIGHBOURS, PREVIEW

TEMPLATES = Path(__file__).parent / "templates"


def render(name: str, **values: Any) -> str:
    """A template of this package, filled; everything not marked as safe is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(name).render(**values)


def report_page(entries: Sequence[Entry], table: Sequence[Row]) -> str:
    """The page: the table of all entries, and everything else run by run."""
    runs = [run for entry in entries for run in entry.runs]
    return render(
        "report.html",
        title=" · ".join(entry.name for entry in entries),
        when=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        version=__version__,
        runs=runs,
        columns=_columns(entries),
        table=table,
        obstacles=obstacles(runs),
        unequal=unequal_balls(runs),
        weak=weak_figures(runs),
        pareto=_pareto(runs, table),
        trade_offs=[
            plot
            for alignment, quality in trade_offs(runs, [row.metric for row in table])
            if (plot := figures.trade_off(runs, alignment, quality)) is not None
        ],
        curves=_curves(runs),
        same_noise=all(paired(runs[0], run) for run in runs[1:]),
        pictures=[(picture(run.folder / PREVIEW), picture(run.folder / NEIGHBOURS)) for run in runs],
        differences=differences([run.recipe for run in runs]),
        methods=_methods(runs, table),
    )


def _columns(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """What the table says of each entry beside its figures."""
    found, number = [], 0
    for entry in entries:
        reports = [run.report for run in entry.runs]
        found.append(
            {
                "name": entry.name,
                "about": f"{reports[0].samples} {reports[0].kind}",
                "colours": [figures.colour(number + place) for place in range(len(reports))],
                "seconds": float(np.mean([report.seconds_per_image for report in reports])),
                "passes": float(np.mean([report.evaluations_per_image for report in reports])),
                "facts": entry.runs[0].facts if len(reports) == 1 else {},
            }
        )
        number += len(reports)
    return found


def picture(path: Path) -> str | None:
    """A PNG as a data URI, or None if it does not exist."""
    if not path.is_file():
        return None
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _pareto(runs: Sequence[EvaluatedRun], table: Sequence[Row]) -> list[str]:
    """Quality against seconds and against network passes, for the figures that most runs have."""
    seconds = [run.report.seconds_per_image for run in runs]
    passes = [run.report.evaluations_per_image for run in runs]
    plots = []
    for row in table:
        for costs, label in ((seconds, "seconds an image"), (passes, "network passes an image")):
            plots.append(figures.pareto(runs, row.metric, costs, label))
    return [plot for plot in plots if plot is not None]


def _curves(runs: Sequence[EvaluatedRun]) -> list[tuple[str, str, str]]:
    """Name, plot against images, plot against time."""
    names = dict.fromkeys(name for run in runs for name in run.curves)
    found = []
    for name in names:
        images = figures.curves(runs, name, against="images")
        minutes = figures.curves(runs, name, against="time")
        if images is not None and minutes is not None:
            found.append((name, images, minutes))
    return found


def _methods(runs: Sequence[EvaluatedRun], table: Sequence[Row]) -> list[tuple[str, str, str]]:
    """For every figure, the methods of its interval and its test against the best."""
    found = []
    for row in table:
        intervals = {str(run.report.intervals.get(row.metric, {}).get("method", "none")) for run in runs}
        tests = {cell.against_best.method for cell in row.cells if cell.against_best is not None}
        found.append((row.metric, ", ".join(sorted(intervals)), ", ".join(sorted(tests)) or "none"))
    return found

"""The plots of a comparison, as SVG text to put into a page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sfumato.evaluation.compare.guidance import over_guidance
from sfumato.evaluation.compare.runs import Curve, EvaluatedRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
"""Okabe & Ito's palette: distinguishable with any colour vision."""
MARKERS = "osD^vPX*"


def colour(index: int) -> str:
    """The colour of a run, the same in all plots."""
    return COLOURS[index % len(COLOURS)]


def pareto(runs: Sequence[EvaluatedRun], metric: str, costs: Sequence[float], label: str) -> str | None:
    """Quality against the cost of an image, with the line of those that no other run beats in both.

    `costs` has one entry per run; runs without cost or figure are left out. None if fewer than two remain.
    """
    shown = [i for i, run in enumerate(runs) if metric in run.report.metrics and costs[i] > 0]
    if len(shown) < 2:
        return None
    higher = runs[shown[0]].report.higher_is_better[metric]
    values = {i: runs[i].report.metrics[metric] for i in shown}
    figure, axes = _figure()
    front = pareto_front([(costs[i], values[i]) for i in shown], higher_is_better=higher)
    points = [(costs[shown[i]], values[shown[i]]) for i in front]
    if len(points) > 1:
        axes.plot(*zip(*points, strict=True), color="#999999", linewidth=1, linestyle="--", zorder=1)
    for i in shown:
        low, high = _reach(runs[i], metric, values[i])
        axes.errorbar(
            costs[i],
            values[i],
            yerr=[[low], [high]],
            fmt=MARKERS[i % len(MARKERS)],
            color=colour(i),
            capsize=3,
        )
        axes.annotate(
            runs[i].name, (costs[i], values[i]), xytext=(7, 5), textcoords="offset points", fontsize=8
        )
    axes.set_xscale("log")
    axes.margins(x=0.25, y=0.15)
    axes.set_xlabel(f"{label} (log)")
    axes.set_ylabel(f"{metric} ({'higher' if higher else 'lower'} is better)")
    return _svg(figure)


def trade_off(runs: Sequence[EvaluatedRun], alignment: str, quality: str) -> str | None:
    """Quality against alignment, a line for each model over its guidances; None if no model has two."""
    lines = [line for line in over_guidance(runs, alignment, quality) if len(line.points) > 1]
    if not lines:
        return None
    figure, axes = _figure()
    for number, line in enumerate(lines):
        axes.plot(
            [point.alignment for point in line.points],
            [point.quality for point in line.points],
            label=line.name,
            color=colour(number),
            marker=MARKERS[number % len(MARKERS)],
        )
        for point in line.points:
            place = (point.alignment, point.quality)
            axes.annotate(f"{point.guidance:g}", place, xytext=(5, 4), textcoords="offset points", fontsize=8)
    better = runs[0].report.higher_is_better
    for set_label, name in ((axes.set_xlabel, alignment), (axes.set_ylabel, quality)):
        set_label(f"{name} ({'higher' if better.get(name, True) else 'lower'} is better)")
    axes.margins(0.15)
    if len(lines) > 1:
        axes.legend(fontsize=8, frameon=False)
    return _svg(figure)


def pareto_front(points: Sequence[tuple[float, float]], *, higher_is_better: bool) -> list[int]:
    """Positions of the (cost, quality) points that no other beats in both, by rising cost."""
    sign = -1.0 if higher_is_better else 1.0
    front: list[int] = []
    best = float("inf")
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], sign * points[i][1])):
        if sign * points[index][1] < best:
            front.append(index)
            best = sign * points[index][1]
    return front


def curves(runs: Sequence[EvaluatedRun], name: str, *, against: str) -> str | None:
    """A figure along training, against images or against minutes since the first point of each run.

    `against`: images | time. None if no run has two points.
    """
    found: Mapping[int, Curve] = {
        i: run.curves[name] for i, run in enumerate(runs) if len(run.curves.get(name, _NONE).values) > 1
    }
    if not found:
        return None
    figure, axes = _figure()
    for i, curve in found.items():
        x = curve.images if against == "images" else [s / 60 for s in curve.seconds]
        marker = MARKERS[i % len(MARKERS)] if len(curve.values) < 40 else None
        axes.plot(x, curve.values, color=colour(i), marker=marker, markersize=4, label=runs[i].name)
    axes.set_xlabel("images" if against == "images" else "minutes of training")
    axes.set_ylabel(name)
    if len(found) > 1:
        axes.legend(fontsize=8, frameon=False)
    return _svg(figure)


_NONE = Curve((), (), ())


def _reach(run: EvaluatedRun, metric: str, value: float) -> tuple[float, float]:
    found = run.report.intervals.get(metric)
    if found is None:
        return 0.0, 0.0
    return max(0.0, value - float(str(found["low"]))), max(0.0, float(str(found["high"])) - value)


def _figure() -> tuple[Figure, Axes]:
    # Only the object interface: no global state, no display, nothing to close.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure) -> str:
    """The picture as an <svg> element, with text as text and without a date: equal input, equal bytes."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sfumato", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]

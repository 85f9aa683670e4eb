"""The plots of a sweep, as PNG files: parallel coordinates, and the importance of each field."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.tuning.journal import Trial
from sfumato.tuning.parameter import Parameter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = {"finished": "-", "stopped": ":", "running": "--", "waiting": "--", "failed": "--"}
_TICKS = 5
_BEHIND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}


def parallel_coordinates(
    path: Path,
    trials: Sequence[Trial],
    space: Mapping[str, Parameter],
    recipe: Mapping[str, Any],
    *,
    metric: str,
    mode: str,
    best: int | None,
) -> bool:
    """One line per trial across one axis per field and one for the metric; dotted lines were stopped early.

    Returns False if there is nothing to draw: fewer than two trials with a finite value.
    """
    shown = [trial for trial in trials if trial.last is not None and math.isfinite(trial.last.value)]
    if len(shown) < 2:
        return False
    axes = [
        _Axis.of(name, [t.values.get(name, recipe.get(name)) for t in shown], space[name]) for name in space
    ]
    lasts = [trial.last.value for trial in shown if trial.last is not None]
    axes.append(_Axis.numbers(f"{metric} ({mode})", lasts, logarithmic=_spread(lasts)))
    figure = _figure(1.9 * len(axes) + 1.2, 4.6)
    plot = figure.subplots()
    colours = _colours(lasts, mode)
    for row, trial in enumerate(shown):
        heights = [axis.heights[row] for axis in axes]
        marked = trial.number == best
        plot.plot(
            range(len(axes)),
            heights,
            color=colours[row],
            linestyle=_STYLE[trial.status],
            linewidth=3 if marked else 1.3,
            zorder=3 if marked else 2,
        )
        plot.annotate(
            str(trial.number), (len(axes) - 1, heights[-1]), (5, -3), textcoords="offset points", size=7
        )
    for place, axis in enumerate(axes):
        plot.axvline(place, color="#999999", linewidth=0.8, zorder=1)
        for height, text in axis.ticks:
            plot.text(place - 0.03, height, text, ha="right", va="center", size=7, bbox=_BEHIND)
    plot.set_xticks(range(len(axes)), [axis.name.replace(".", ".\n") for axis in axes], fontsize=7)
    plot.set_yticks([])
    plot.spines[:].set_visible(False)
    plot.set_xlim(-0.6, len(axes) - 0.6)
    figure.savefig(path, dpi=130)
    return True


def importance(path: Path, shares: Mapping[str, float], *, metric: str, trials: int) -> bool:
    """One bar per field; returns False if `shares` is empty."""
    if not shares:
        return False
    figure = _figure(6.4, 1.2 + 0.4 * len(shares))
    plot = figure.subplots()
    names = list(shares)[::-1]
    bars = plot.barh(names, [shares[name] for name in names], color="#0072B2")
    plot.bar_label(bars, fmt="{:.0%}", padding=3, fontsize=8)
    plot.set_xlim(0, 1.1)
    plot.tick_params(labelsize=8)
    plot.spines[["top", "right"]].set_visible(False)
    plot.set_title(f"importance for {metric}, from {trials} trials", fontsize=9)
    figure.savefig(path, dpi=130)
    return True


class _Axis:
    """A vertical axis: the position of each trial on it, in [0, 1], and its labels."""

    def __init__(self, name: str, heights: list[float], ticks: list[tuple[float, str]]) -> None:
        self.name, self.heights, self.ticks = name, heights, ticks

    @classmethod
    def of(cls, name: str, values: list[Any], parameter: Parameter) -> _Axis:
        numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        if numeric and parameter.bounds is not None:
            logarithmic = parameter.loguniform is not None and min(values) > 0
            return cls.numbers(name, values, logarithmic=logarithmic)
        texts = [json.dumps(value, default=str) for value in values]
        labels = sorted(dict.fromkeys(texts), key=lambda text: (len(text), text))
        heights = {label: _share(rank, 0, len(labels) - 1) for rank, label in enumerate(labels)}
        return cls(name, [heights[text] for text in texts], [(heights[label], label) for label in labels])

    @classmethod
    def numbers(cls, name: str, values: Sequence[float], *, logarithmic: bool) -> _Axis:
        moved = [math.log(value) if logarithmic else float(value) for value in values]
        low, high = min(moved), max(moved)
        ticks = []
        for index in range(_TICKS if high > low else 1):
            place = low + (high - low) * index / (_TICKS - 1)
            ticks.append((_share(place, low, high), f"{math.exp(place) if logarithmic else place:.3g}"))
        return cls(name, [_share(value, low, high) for value in moved], ticks)


def _share(value: float, low: float, high: float) -> float:
    return 0.5 if high <= low else (value - low) / (high - low)


def _spread(values: Sequence[float]) -> bool:
    """Whether values span so much that a logarithmic axis shows them better."""
    return min(values) > 0 and max(values) > 20 * min(values)


def _colours(values: Sequence[float], mode: str) -> list[Any]:
    """Best to worst, by rank, from dark to light."""
    import matplotlib as mpl

    order = sorted(range(len(values)), key=lambda row: values[row], reverse=mode == "max")
    scale = mpl.colormaps["viridis"]
    colours: list[Any] = [None] * len(values)
    for rank, row in enumerate(order):
        colours[row] = scale(0.9 * _share(rank, 0, len(values) - 1))
    return colours


def _figure(width: float, height: float) -> Figure:
    # The object interface alone: no global state, no display, nothing to close.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")

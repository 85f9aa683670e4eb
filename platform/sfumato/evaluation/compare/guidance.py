"""Evaluations of one model with several guidances: quality against alignment, as papers draw it.

Saharia et al. 2022 (Imagen), fig. 4: FID against CLIP score over guidance weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from sfumato.evaluation.compare.runs import EvaluatedRun
from sfumato.evaluation.metrics import all_metrics

OPTION = "guidance"


@dataclass(frozen=True, slots=True)
class Point:
    """An evaluation."""

    guidance: float
    alignment: float
    quality: float


@dataclass(frozen=True, slots=True)
class Line:
    """The evaluations of one model, by rising guidance."""

    name: str
    points: Sequence[Point]


def over_guidance(runs: Sequence[EvaluatedRun], alignment: str, quality: str) -> list[Line]:
    """A line for each model that has both figures, in the order of the runs."""
    groups: dict[str, list[EvaluatedRun]] = {}
    for run in runs:
        values = run.report.metrics
        told = isinstance(run.report.sampling.get(OPTION), int | float)
        if run.report.model and told and alignment in values and quality in values:
            groups.setdefault(run.report.model, []).append(run)
    return [
        Line(_name(group), sorted(_points(group, alignment, quality), key=_guidance))
        for group in groups.values()
    ]


def trade_offs(runs: Sequence[EvaluatedRun], figures: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs (alignment, quality) of these figures, if a model was evaluated with several guidances."""
    known = all_metrics()
    topics = {name: _topic(name, runs, known) for name in figures}
    pairs = [
        (one, other)
        for one in figures
        for other in figures
        if (topics[one], topics[other]) == ("alignment", "quality")
    ]
    return [pair for pair in pairs if any(len(line.points) > 1 for line in over_guidance(runs, *pair))]


def _topic(figure: str, runs: Sequence[EvaluatedRun], known: object) -> str:
    """What a figure says, by its metric."""
    assert isinstance(known, dict)
    for run in runs:
        metric, _ = run.report.computed_on.get(figure, (figure, ""))
        if metric in known:
            return str(known[metric].topic)
    return "quality"


def _points(group: Sequence[EvaluatedRun], alignment: str, quality: str) -> list[Point]:
    values = [(run.report.sampling[OPTION], run.report.metrics) for run in group]
    return [Point(float(str(weight)), found[alignment], found[quality]) for weight, found in values]


def _guidance(point: Point) -> float:
    return point.guidance


def _name(group: Sequence[EvaluatedRun]) -> str:
    """What the names of its evaluations begin with, or the first one's."""
    names = [run.name for run in group]
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    common = "".join(letters[0] for letters in alike).rstrip("-_. =")
    return common if len(names) > 1 and len(common) > 1 else names[0]

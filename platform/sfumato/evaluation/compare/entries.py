"""What a comparison has columns for: a run, or all training seeds of one recipe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sfumato.errors import ConfigError
from sfumato.evaluation.compare.runs import EvaluatedRun
from sfumato.evaluation.compare.significance import Difference, difference


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of an entry and its interval. Of several seeds: their mean, and their standard deviation."""

    value: float
    low: float | None = None
    high: float | None = None
    seeds: int = 1
    spread: float | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One run, or several that differ in the seed of their training alone."""

    name: str
    runs: Sequence[EvaluatedRun]

    def values(self, metric: str) -> list[float]:
        """The figure of every run that has it."""
        return [run.report.metrics[metric] for run in self.runs if metric in run.report.metrics]

    def weak(self, metric: str) -> Sequence[str]:
        """Why the figure says little, for any of the runs."""
        return list(dict.fromkeys(mark for run in self.runs for mark in run.report.marks.get(metric, ())))

    def fit(self, metric: str) -> bool:
        """Whether the figure may rank the entry: it is weak for none of the runs."""
        return all(metric in run.report.fit for run in self.runs if metric in run.report.metrics)

    def figure(self, metric: str) -> Figure | None:
        """None if no run has it."""
        values = self.values(metric)
        if len(self.runs) > 1 and values:
            return over_seeds(values)
        if not values:
            return None
        found = self.runs[0].report.intervals.get(metric)
        if found is None:
            return Figure(values[0])
        return Figure(values[0], float(str(found["low"])), float(str(found["high"])))


def over_seeds(values: Sequence[float], confidence: float = 0.95) -> Figure:
    """Mean and standard deviation over seeds, and Student's interval of the mean.

    It covers what another training would have given, randomness of the samples included.
    """
    from scipy import stats  # takes long to import

    mean, number = float(np.mean(values)), len(values)
    if number < 2:
        return Figure(mean, seeds=number)
    spread = float(np.std(values, ddof=1))
    reach = float(stats.t.ppf((1 + confidence) / 2, number - 1)) * spread / math.sqrt(number)
    return Figure(mean, mean - reach, mean + reach, number, spread)


def entries(runs: Sequence[EvaluatedRun], *, group_seeds: bool) -> list[Entry]:
    """An entry a run or, with `group_seeds`, one for all runs that differ in their seed alone.

    Raises ConfigError for two runs of one recipe and one seed: they would count as two trainings.
    """
    if not group_seeds:
        return [Entry(run.name, [run]) for run in runs]
    groups: dict[str, list[EvaluatedRun]] = {}
    for run in runs:
        groups.setdefault(run.but_for_seed or f"only {run.name}", []).append(run)
    return [_entry(group) for group in groups.values()]


def difference_of(a: Entry, b: Entry, metric: str) -> Difference | None:
    """The tested difference of two entries; None if no test is possible.

    Of two runs by their samples (`significance.py`). Of seeds by a t-test: Welch's or, if one entry is a
    single run, Student's, which takes the spread of the other's seeds for its own.
    """
    if len(a.runs) == len(b.runs) == 1:
        return difference(a.runs[0], b.runs[0], metric)
    from scipy import stats  # takes long to import

    mine, theirs = a.values(metric), b.values(metric)
    value = float(np.mean(theirs) - np.mean(mine))
    if max(len(mine), len(theirs)) < 2 or np.ptp(mine) + np.ptp(theirs) == 0:
        return None
    welch = min(len(mine), len(theirs)) > 1
    p = float(stats.ttest_ind(mine, theirs, equal_var=not welch).pvalue)
    return Difference(metric, value, p, f"{'Welch' if welch else 'Student'}'s t-test over seeds")


def _entry(group: Sequence[EvaluatedRun]) -> Entry:
    if len(group) == 1:
        return Entry(group[0].name, group)
    seeds: dict[int, str] = {}
    for run in group:
        if run.seed in seeds:
            raise ConfigError(
                f"{seeds[run.seed]} and {run.name} are one recipe with one seed, {run.seed}, and so one "
                "training: name one of them"
            )
        seeds[run.seed] = run.name
    return Entry(f"{group[0].title} ({len(group)} seeds)", group)

"""From features to figures: every selected metric with its interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from sfumato.evaluation.decisions.weakness import Marks, of_noise
from sfumato.evaluation.intervals.uncertainty import IntervalSettings, interval
from sfumato.evaluation.metrics.metric import FeatureSet, Metric, MetricOptions, MetricResult, TermsOf
from sfumato.evaluation.noise import Noise
from sfumato.evaluation.parallel_map import Told
from sfumato.evaluation.progress import Begin, silent
from sfumato.evaluation.report import finite
from sfumato.evaluation.selected import Selection
from sfumato.evaluation.statistics import Float64Array


@dataclass(slots=True)
class Figures:
    """Values, explanations and intervals, terms of those that are means with what the terms belong to, and
    marks of weak ones; by name."""

    values: dict[str, float] = field(default_factory=dict)
    details: dict[str, Mapping[str, object]] = field(default_factory=dict)
    intervals: dict[str, Mapping[str, object]] = field(default_factory=dict)
    terms: dict[str, Float64Array] = field(default_factory=dict)
    marks: dict[str, tuple[str, ...]] = field(default_factory=dict)
    terms_of: dict[str, TermsOf] = field(default_factory=dict)
    deviations: dict[str, Float64Array] = field(default_factory=dict)
    """What each sample or group adds to figures that are no means (`StandardError`)."""


def measure(
    selection: Selection,
    real: Mapping[str, FeatureSet],
    generated: Mapping[str, FeatureSet],
    pairs: Mapping[str, Float64Array],
    *,
    intervals: IntervalSettings,
    seed: int,
    begin: Begin = silent,
    weak: Marks | None = None,
    noise: Noise | None = None,
) -> Figures:
    """All figures. `pairs` are the values of each image and its reconstruction, by metric. `begin` is told of
    each figure; `weak` are the marks of the features, by their name; `noise` gives features of noise, which
    some figures are to refuse.

    Raises SfumatoError for a figure that is not a number.
    """
    figures = Figures()
    for metric, kind, name in selection.metrics:
        mine, theirs = real[kind.name], generated[kind.name]
        options = replace(selection.options, spread=Told(selection.options.spread, begin(name)))
        result = replace(finite(metric.compute(mine, theirs, options)), name=name)
        if metric.reads_features:
            marks = (*(weak or {}).get(kind.name, ()), *result.marks)
            if metric.refuses_noise and noise is not None:
                of_it = metric.compute(mine, noise(kind.name), options).value
                marks = (*marks, *of_noise(kind.name, of_it))
            result = replace(result, marks=marks)
        again = _Again(metric, mine, options)
        _add(figures, result, again, theirs, intervals, seed)
        if result.terms_M is not None:
            figures.terms_of[name] = metric.terms_of
    for name, value_N in pairs.items():
        result = finite(MetricResult(name, float(value_N.mean()), {"images": len(value_N)}, value_N))
        _add(figures, result, None, next(iter(generated.values())), intervals, seed)
        figures.terms_of[name] = "samples"
    return figures


@dataclass(frozen=True, slots=True)
class _Again:
    """A metric with all but the generated features given."""

    metric: Metric
    reference: FeatureSet
    options: MetricOptions

    def __call__(self, generated: FeatureSet) -> MetricResult:
        return self.metric.compute(self.reference, generated, self.options)


def _add(
    figures: Figures,
    result: MetricResult,
    again: _Again | None,
    generated: FeatureSet,
    settings: IntervalSettings,
    seed: int,
) -> None:
    figures.values[result.name] = result.value
    details = dict(result.details)
    if result.no_interval:
        details["no_interval"] = result.no_interval
    figures.details[result.name] = details
    if result.marks:
        figures.marks[result.name] = result.marks
    if result.terms_M is not None:
        figures.terms[result.name] = np.asarray(result.terms_M, dtype=np.float64)
    assert again is not None or result.terms_M is not None
    found = interval(result, again or _never, generated, settings, seed=seed)
    if found is not None:
        figures.intervals[result.name] = found.facts()
        if found.deviation_P is not None:
            figures.deviations[result.name] = np.asarray(found.deviation_P, dtype=np.float64)


def _never(generated: FeatureSet) -> MetricResult:
    raise AssertionError("a mean of terms is never computed again")

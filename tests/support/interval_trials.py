"""Repeated evaluations of models whose distributions are known: do intervals cover, are tests of the right
size?

Real images and samples are vectors from four Gaussian classes in six dimensions. Every trial is a pure
function of its case and number. `make check-intervals` runs many, `test_check_intervals.py` a few.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import stats

from sfumato.core.seeds import derive
from sfumato.evaluation.compare.runs import EvaluatedRun
from sfumato.evaluation.compare.significance import difference
from sfumato.evaluation.intervals.uncertainty import Interval, IntervalSettings, interval
from sfumato.evaluation.metrics import all_metrics
from sfumato.evaluation.metrics.metric import FeatureSet, MetricOptions, MetricResult
from sfumato.evaluation.metrics.settings import settings_class
from sfumato.evaluation.references.feature_cache import FeatureCache
from sfumato.evaluation.report import DEVIATIONS, EvaluationReport
from sfumato.evaluation.store import digest

DIM, CLASSES, REAL, MADE = 6, 4, 500, 500
IN_PARTS = {"fd_infinity": 2000, "inception_score": 2000}
"""Samples where the figure is of parts of them: a tenth is the smallest subset, or each part."""
WORLDS = 5
"""Sets of real images: an interval covers the mean over seeds for each of them."""
CENTRES_KD = np.random.default_rng(0).normal(scale=1.2, size=(CLASSES, DIM))
SETTINGS = settings_class()(
    kid_subset_size=250, kid_subsets=20, infinity_points=6, memorisation_quantile=0.05
)
OPTIONS = MetricOptions(settings=SETTINGS)
INTERVALS = IntervalSettings()

Model = Literal["apart", "farther", "alike"]
SHAPE: dict[Model, tuple[float, float]] = {"apart": (0.25, 1.15), "farther": (0.35, 1.3), "alike": (0.0, 1.0)}
"""Shift along every axis, and scale of the noise. `alike` draws what real images are drawn from."""
METRICS = (
    *("fd", "fd_infinity", "intra_fd", "kid", "cmmd", "inception_score", "precision", "recall", "density"),
    *("coverage", "class_accuracy", "realism", "authenticity", "memorisation"),
    *("bias", "class_kl", "classes_covered", "pair_distance"),
)


@dataclass(frozen=True)
class Case:
    """One row of a table. `of_classes`: samples come class by class, in fixed numbers, as evaluations draw
    them; otherwise classes are random. Of tests, `second` is the model of the second run, and `paired` runs
    share half of their noise."""

    kind: Literal["interval", "test"]
    metric: str
    first: Model
    second: Model | None = None
    of_classes: bool = True
    paired: bool = False

    @property
    def name(self) -> str:
        """A key for records."""
        parts = [self.kind, self.metric, self.first, self.second or ""]
        return " ".join([*parts, "classes" if self.of_classes else "independent", "paired" * self.paired])


def interval_cases() -> list[Case]:
    """Every metric with an interval, on samples by class (and for the common ones, on independent
    samples)."""
    found = [Case("interval", metric, model) for metric in METRICS for model in ("apart", "alike")]
    independent = ("fd", "kid", "precision", "recall", "coverage", "inception_score")
    return found + [Case("interval", metric, "apart", of_classes=False) for metric in independent]


def difference_cases() -> list[Case]:
    """Every metric's test: of equal models (unpaired and paired), and of different ones."""
    found = []
    for metric in METRICS:
        found += [
            Case("test", metric, "apart", "apart"),
            Case("test", metric, "apart", "apart", paired=True),
            Case("test", metric, "apart", "farther"),
        ]
    return found


@cache
def real_images(world: int) -> FeatureSet:
    """The features of the real images of one world, the same in all its trials."""
    rng = np.random.default_rng(derive("world", world))
    label_N = rng.integers(CLASSES, size=REAL)
    return _features(CENTRES_KD[label_N] + rng.normal(size=(REAL, DIM)), label_N)


def samples(case: Case, model: Model, rng: np.random.Generator, noise_MD: np.ndarray[Any, Any]) -> FeatureSet:
    """Samples of a model."""
    shift, scale = SHAPE[model]
    rows = len(noise_MD)
    label_M = np.arange(rows) % CLASSES if case.of_classes else rng.integers(CLASSES, size=rows)
    x_MD = CENTRES_KD[label_M] + shift + scale * noise_MD
    if case.of_classes:  # in turn for a stretch, then class by class: both orders are met in practice
        order_M = np.argsort(label_M, kind="stable") if rng.integers(2) else np.arange(rows)
        return _features(x_MD[order_M], label_M[order_M])
    made = _features(x_MD, label_M)
    needs = all_metrics()[case.metric].needs_labels
    return made if needs else FeatureSet(made.embedding_ND, made.logits_NK)


def _features(x_ND: np.ndarray[Any, Any], label_N: np.ndarray[Any, Any]) -> FeatureSet:
    logits_NK = 1.5 * (x_ND @ CENTRES_KD.T - np.square(CENTRES_KD).sum(axis=1) / 2)
    return FeatureSet(x_ND.astype(np.float32), logits_NK.astype(np.float32), label_N)


def measured(case: Case, made: FeatureSet, world: int, seed: int) -> tuple[MetricResult, Interval | None]:
    """The figure with its interval, as an evaluation computes them."""
    metric, real = all_metrics()[case.metric], real_images(world)

    def again(features: FeatureSet) -> MetricResult:
        return metric.compute(real, features, OPTIONS)

    result = again(made)
    return result, interval(result, again, made, INTERVALS, seed=seed)


def trial(case: Case, number: int) -> dict[str, float]:
    """What one repetition found: of intervals `value`, `low`, `high`, `world`; of tests `p`."""
    rng = np.random.default_rng(derive(case.name, number))
    world = number % WORLDS
    rows = IN_PARTS.get(case.metric, MADE)
    noise = rng.normal(size=(2, rows, DIM))
    if case.kind == "interval":
        result, found = measured(case, samples(case, case.first, rng, noise[0]), world, number)
        low, high = (math.nan, math.nan) if found is None else (found.low, found.high)
        return {"world": world, "value": result.value, "low": low, "high": high}
    assert case.second is not None
    if case.paired:
        noise = (noise + rng.normal(size=(rows, DIM))) / math.sqrt(2)
    made = [  # in one order of classes, which follow from the real images alone
        samples(case, model, np.random.default_rng(number), x)
        for model, x in zip((case.first, case.second), noise, strict=True)
    ]
    seeds = (0, 0) if case.paired else (0, 1)
    runs = [_Run.of(case, features, world, seed) for features, seed in zip(made, seeds, strict=True)]
    tested = difference(runs[0], runs[1], case.metric)
    return {"p": math.nan if tested is None else tested.p}


@dataclass(frozen=True)
class _Run(EvaluatedRun):
    """A run as `compare` sees it, with everything in memory."""

    made: FeatureSet = field(default_factory=lambda: FeatureSet(np.empty((0, DIM), np.float32)))
    world: int = 0
    stored: tuple[dict[str, Any], dict[str, Any]] = ({}, {})

    @property
    def _stored(self) -> Any:
        return self.stored

    def features(self, name: str) -> FeatureSet:
        return FeatureSet(self.made.embedding_ND, self.made.logits_NK)

    def reference(self, name: str) -> FeatureSet:
        return real_images(self.world)

    @classmethod
    def of(cls, case: Case, made: FeatureSet, world: int, seed: int) -> _Run:
        result, found = measured(case, made, world, seed)
        metric = all_metrics()[case.metric]
        report = EvaluationReport(
            metrics={case.metric: result.value},
            details={case.metric: result.details},
            features={"known": {"digest": "known"}},
            higher_is_better={case.metric: metric.higher_is_better},
            samples=len(made),
            reference_samples=REAL,
            reference_digest=str(world),
            seed=seed,
            seconds=0.0,
            seconds_per_image=0.0,
            preview=None,
            intervals={} if found is None else {case.metric: found.facts()},
            computed_on={case.metric: (case.metric, "known")},
            labels_digest=digest(None if made.label_N is None else made.label_N.tolist()),
        )
        terms = {} if result.terms_M is None else {case.metric: result.terms_M}
        if found is not None and found.deviation_P is not None:
            terms[f"{DEVIATIONS}{case.metric}"] = found.deviation_P
        stored = (terms, {"of": dict.fromkeys(terms, metric.terms_of)})
        nowhere = Path("nowhere")
        return cls(
            "run", nowhere, nowhere, report, FeatureCache(nowhere), {}, made=made, world=world, stored=stored
        )


@dataclass(frozen=True, slots=True)
class Share:
    """A share of trials with its standard error."""

    share: float
    trials: int

    @property
    def error(self) -> float:
        """Binomial."""
        return math.sqrt(self.share * (1 - self.share) / self.trials) if self.trials else math.nan

    def compatible(self, low: float, high: float, doubt: float = 1e-3) -> bool:
        """Whether a true share in [low, high] could have given this one, with a chance above `doubt`."""
        hits = round(self.share * self.trials)
        below = stats.binom.cdf(hits, self.trials, low)
        above = stats.binom.sf(hits - 1, self.trials, high)
        return bool(min(below, above) > doubt)


def coverage(found: Iterable[dict[str, float]]) -> Share:
    """How often intervals covered the mean of their world's values."""
    by_world: dict[float, list[dict[str, float]]] = {}
    for one in found:
        if not math.isnan(one["low"]):
            by_world.setdefault(one["world"], []).append(one)
    hits = total = 0
    for those in (those for those in by_world.values() if len(those) > 1):
        value, low, high = (np.array([one[name] for one in those]) for name in ("value", "low", "high"))
        # A value is part of the mean, and so nearer to it than to the truth, by this factor in expectation.
        target = value + (value.mean() - value) * math.sqrt(len(value) / (len(value) - 1))
        hits += int(((low <= target) & (target <= high)).sum())
        total += len(those)
    return Share(hits / total if total else math.nan, total)


def rejections(found: Sequence[dict[str, float]], level: float = 0.05) -> Share:
    """How often a test found a difference."""
    p = [one["p"] for one in found if not math.isnan(one["p"])]
    return Share(float(np.mean([value <= level for value in p])) if p else math.nan, len(p))

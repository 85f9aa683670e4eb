"""A run as a comparison sees it: its report, and the files next to it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.evaluation.blocks.store import IMAGES
from sfumato.evaluation.decisions.weakness import lines
from sfumato.evaluation.metrics import all_metrics
from sfumato.evaluation.metrics.metric import FeatureSet
from sfumato.evaluation.references.feature_cache import FeatureCache
from sfumato.evaluation.report import BITS, BITS_ON_TRAINING, DEVIATIONS, TERMS, EvaluationReport
from sfumato.evaluation.statistics import Float64Array, UInt8Array
from sfumato.evaluation.store import Array, digest, read_arrays

DEPENDENT_IN_0_1 = ("recall", "coverage", "classification_score")
SHORT_IN_0_1 = ("kid", "fd_infinity", "inception_score")
_BLOCK = re.compile(r"\d{6,}\.safetensors")


@dataclass(frozen=True)
class Curve:
    """A figure along training: images seen, unix seconds, values; of equal length."""

    images: Sequence[float]
    seconds: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True)
class EvaluatedRun:
    """One run: `folder` holds its report, `blocks` its features as long as they are kept."""

    name: str
    folder: Path
    blocks: Path
    report: EvaluationReport
    cache: FeatureCache
    recipe: Mapping[str, Any]
    curves: Mapping[str, Curve] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    """Other facts worth a line: family, training images, parameters ..."""
    title: str = ""
    """The recipe's name."""
    seed: int = 0
    but_for_seed: str = ""
    """Equal in runs whose recipes and data differ in nothing but `seed`; empty if that is not known."""

    @cached_property
    def _stored(self) -> tuple[Mapping[str, Float64Array], Mapping[str, Any]]:
        stored = read_arrays(self.folder / TERMS)
        if stored is None:
            return {}, {}
        terms, facts = stored
        old = BITS_ON_TRAINING in self.report.metrics  # perhaps: version 0.1 had one name for both
        renamed = {BITS: BITS_ON_TRAINING} if old else {}
        return {renamed.get(name, name): part for name, part in terms.items()}, facts

    @property
    def terms(self) -> Mapping[str, Float64Array]:
        """The terms of the figures that are means of independent terms, by figure."""
        terms, _ = self._stored
        return {name: term_M for name, term_M in terms.items() if self.terms_of(name)}

    def deviations(self, figure: str) -> Float64Array | None:
        """What each sample or group adds to the figure, or None if the report has not kept it."""
        terms, _ = self._stored
        return terms.get(f"{DEVIATIONS}{figure}")

    def terms_of(self, figure: str) -> str:
        """What the figure's terms belong to (`Metric.terms_of`); empty if they are not independent.

        Version 0.1 did not record it, and also kept the terms of figures whose terms share a manifold.
        """
        terms, facts = self._stored
        if figure not in terms or figure.startswith(DEVIATIONS):
            return ""
        if "of" in facts:
            return str(facts["of"][figure])
        metric, _ = self.report.computed_on.get(figure, (figure, ""))
        if metric in DEPENDENT_IN_0_1:
            return ""
        known = all_metrics().get(BITS if metric == BITS_ON_TRAINING else metric)
        return known.terms_of if known is not None else "samples"

    def features(self, name: str) -> FeatureSet | None:
        """Features of the samples in their order, or None if the blocks are missing."""
        embedding = self._rows(f"{name}.embedding")
        if embedding is None or len(embedding) < self.report.samples:
            return None
        logits = self._rows(f"{name}.logits")
        samples = self.report.samples
        return FeatureSet(embedding[:samples], None if logits is None else logits[:samples])

    def reference(self, name: str) -> FeatureSet | None:
        """Features of the reference, or None if the cache no longer has them."""
        extractor = self.report.features.get(name, {}).get("digest")
        key = digest("reference", self.report.reference_digest, extractor)
        arrays = self.cache.read(f"reference-{name}-{key}.safetensors")
        return None if arrays is None else FeatureSet(arrays["embedding"], arrays.get("logits"))

    def images(self, num: int) -> UInt8Array | None:
        """The first `num` samples, or fewer if fewer were kept; None if none were."""
        images = self._rows(IMAGES, stop=num)
        return None if images is None else images[:num]

    def _rows(self, name: str, stop: int | None = None) -> Array | None:
        parts: list[Array] = []
        for path in sorted(self.blocks.glob("*.safetensors")):
            if not _BLOCK.fullmatch(path.name):
                continue
            stored = read_arrays(path, name)
            if stored is None or name not in stored[0]:
                break
            parts.append(stored[0][name])
            if stop is not None and sum(map(len, parts)) >= stop:
                break
        return np.concatenate(parts) if parts else None


def outdated_interval(run: EvaluatedRun, figure: str) -> bool:
    """Whether the report has an interval of version 0.1 that was too short.

    It took the terms of recall and coverage for independent, and the deviation of overlapping subsets (of
    equal parts, without Student's t) for the error of kernel distances, extrapolated distances and Inception
    Scores.
    """
    metric, _ = run.report.computed_on.get(figure, (figure, ""))
    method = str(run.report.intervals.get(figure, {}).get("method", ""))
    return (metric in DEPENDENT_IN_0_1 and method == "Wilson score") or (
        metric in SHORT_IN_0_1 and method == "the metric's own standard error"
    )


def paired(a: EvaluatedRun, b: EvaluatedRun) -> bool:
    """Whether sample i of both has the same seed and the same requested class."""
    mine, theirs = a.report, b.report
    return (mine.kind, mine.seed, mine.samples, mine.labels_digest) == (
        theirs.kind,
        theirs.seed,
        theirs.samples,
        theirs.labels_digest,
    )


def of_equal_classes(a: EvaluatedRun, b: EvaluatedRun) -> bool:
    """Whether classes were requested, and sample i of both is of the same one."""
    mine, theirs = a.report, b.report
    return (mine.kind, mine.samples, mine.labels_digest) == (
        theirs.kind,
        theirs.samples,
        theirs.labels_digest,
    ) and mine.labels_digest not in ("", digest(None))


def obstacles(runs: Sequence[EvaluatedRun]) -> list[str]:
    """Why figures of these runs are not comparable, one line each."""
    found = []
    first = runs[0]
    for run in runs[1:]:
        mine, theirs = first.report, run.report
        if mine.reference_digest != theirs.reference_digest:
            found.append(f"{first.name} and {run.name} were measured against different reference data")
        found += [
            f"{first.name} and {run.name} used different weights of features {name}"
            for name in sorted(mine.features.keys() & theirs.features.keys())
            if mine.features[name].get("digest") != theirs.features[name].get("digest")
        ]
        if mine.samples != theirs.samples:
            found.append(
                f"{first.name} has {mine.samples:,} samples and {run.name} {theirs.samples:,}: distances "
                "fall as samples grow; evaluate them at one number"
            )
        if mine.kind != theirs.kind:
            found.append(f"{first.name} was measured on {mine.kind}, {run.name} on {theirs.kind}")
    return found


def unequal_balls(runs: Sequence[EvaluatedRun]) -> dict[str, str]:
    """The figures that runs measured with balls to different neighbours (`k`), and how, by figure."""
    found = {}
    for figure in metric_names(runs):
        having = [run for run in runs if figure in run.report.metrics]
        k = {run.name: run.report.details.get(figure, {}).get("k") for run in having}
        if len(set(k.values())) > 1:
            found[figure] = " and ".join(f"k={value} in {name}" for name, value in k.items())
    return found


def weak_figures(runs: Sequence[EvaluatedRun]) -> list[str]:
    """Which figures of which run say little, and why; one line each."""
    return [f"{run.name}: {line}" for run in runs for line in lines(run.report.marks)]


def twins(runs: Sequence[EvaluatedRun]) -> list[EvaluatedRun]:
    """The first runs that differ in their seed alone; empty if none do."""
    for run in runs:
        alike = [other for other in runs if run.but_for_seed and other.but_for_seed == run.but_for_seed]
        if len({other.seed for other in alike}) > 1:
            return alike
    return []


def metric_names(runs: Sequence[EvaluatedRun]) -> list[str]:
    """Every figure that any run has, in the order of first appearance."""
    return list(dict.fromkeys(name for run in runs for name in run.report.metrics))

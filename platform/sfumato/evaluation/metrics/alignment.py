"""Alignment: whether samples show what their captions say, on pictures of shapes, judged without a network.

As GenEval (Ghosh et al. 2023): every sample is right or wrong, and figures are shares by category: single
object, two objects, counting, colours, position, attribute binding; here also several (three or four
different) objects. Departures: a checker that is exact on such pictures reads them
(`data/shapes/checker.py`), not a trained detector; a picture with other objects than its caption's is wrong;
and captions that name a combination which training never shows are a figure of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sfumato.core.batch import DataSpec
from sfumato.data.shapes.checker import VERSION, Checker
from sfumato.data.shapes.claims import claim_of
from sfumato.data.shapes.vocabulary import CATEGORIES, LARGEST_SIDE, SMALLEST_SIDE
from sfumato.errors import DataError
from sfumato.evaluation.features.extractor import Extractor
from sfumato.evaluation.metric_inputs import EvaluationSettings, Made, MetricInput, Prepared, Setting
from sfumato.evaluation.metrics.metric import (
    BaseMetric,
    FeatureSet,
    Metric,
    MetricOptions,
    MetricResult,
    Topic,
)
from sfumato.evaluation.references.reference import Captioned, Reference
from sfumato.evaluation.statistics import Int64Array, UInt8Array
from sfumato.evaluation.store import Array
from sfumato.evaluation.subjects.source import Drawn, GivesCaptions, Kind, SampleSource

NAME = "alignment"
CONFIDENCE = 0.95
_LOOKED_AT = 32
_UNREADABLE = -1


def verdicts(images_NHWC: UInt8Array, captions: Sequence[str]) -> Int64Array:
    """(category, held out, shown) int64 [N, 3] of each picture and its caption; a category of -1 is that of a
    caption which says nothing of shapes."""
    read = Checker(images_NHWC.shape[1]).read(images_NHWC)
    rows = []
    for caption, contents in zip(captions, read, strict=True):
        claim = claim_of(caption)
        if claim is None:
            rows.append((_UNREADABLE, 0, 0))
            continue
        shown = contents is not None and claim.holds(contents)
        rows.append((CATEGORIES.index(claim.category), int(claim.held_out), int(shown)))
    return np.array(rows, np.int64).reshape(-1, 3)


class Verdicts(MetricInput):
    """Whether each picture shows what its caption says."""

    name = NAME

    def given_by(self, source: SampleSource) -> bool:
        """By images that are drawn for captions, or have some."""
        return isinstance(source, GivesCaptions) and source.captioned

    def lacking(self, kind: Kind | None) -> str:
        """Captions."""
        return "images with captions, and these have none"

    def open(self, settings: EvaluationSettings, options: MetricOptions, reference: Reference) -> object:
        """Raises DataError for captions that say nothing of shapes."""
        if isinstance(reference, Captioned) and reference.captioned:
            texts = reference.captions(0, min(_LOOKED_AT, reference.size))
            if all(claim_of(text) is None for text in texts):
                raise DataError(
                    f"{NAME} reads captions of the source shapes, and the reference's are of another kind, "
                    f"for example {texts[0][:60]!r}: leave it out of evaluate.metrics"
                )
        return None

    def prepare(self, setting: Setting, opened: object) -> PreparedVerdicts:
        """Workers read the pictures."""
        return PreparedVerdicts()


@dataclass(frozen=True)
class PreparedVerdicts(Prepared):
    """Made beside the features."""

    @property
    def identity(self) -> object:
        """The checker's version."""
        return VERSION

    def beside(
        self, source: SampleSource, index: int, drawn: Drawn, extractors: Sequence[Extractor]
    ) -> Mapping[str, Array]:
        """Those of a block."""
        assert isinstance(source, GivesCaptions)
        return {NAME: verdicts(drawn.images, source.captions_of(index)[: len(drawn.images)])}

    def of_generated(self, features: FeatureSet, name: str, made: Made) -> FeatureSet:
        """With the verdicts."""
        return replace(features, inputs={**features.inputs, NAME: made.beside(NAME)})


class Alignment(BaseMetric):
    """Share of the samples that show what their captions say, 0 to 1; higher is better.

    Of captions with combinations that training shows, or of those with held-out ones; `details` have every
    category with its Wilson interval.
    """

    higher_is_better = True
    topic: Topic = "alignment"
    inputs = (Verdicts(),)
    reads_features = False

    def __init__(self, *, held_out: bool) -> None:
        self._held_out = held_out
        self.name = f"{NAME}_held_out" if held_out else NAME

    def problems(self, data: DataSpec) -> list[str]:
        """Images that the source shapes does not make."""
        if data.channels == 3 and data.height == data.width and SMALLEST_SIDE <= data.width <= LARGEST_SIDE:
            return []
        sizes = f"{SMALLEST_SIDE}x{SMALLEST_SIDE} to {LARGEST_SIDE}x{LARGEST_SIDE}"
        got = f"{data.width}x{data.height} with {data.channels} channel{'s' * (data.channels > 1)}"
        wanted = f"pictures of the source shapes, in colour and {sizes}"
        return [f"{self.name} reads {wanted}; this data is {got}: leave it out of evaluate.metrics"]

    def compute(self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> MetricResult:
        verdict_N3 = generated.inputs.get(NAME)
        if verdict_N3 is None:
            raise DataError(f"{self.name} needs images with captions: leave it out of evaluate.metrics")
        category_N, held_out_N, shown_N = verdict_N3.T
        mine_N = (category_N != _UNREADABLE) & (held_out_N == self._held_out)
        if not mine_N.any():
            part = "held_out" if self._held_out else "seen"
            raise DataError(
                f"{self.name}: none of the captions has {'' if self._held_out else 'only '}combinations "
                f"{'held out of' if self._held_out else 'of'} training: measure against a set packed with "
                f"part={part} or part=both, or leave it out of evaluate.metrics"
            )
        shares = {
            name: _share(shown_N[mine_N & (category_N == number)])
            for number, name in enumerate(CATEGORIES)
            if (mine_N & (category_N == number)).any()
        }
        details: dict[str, object] = {
            "categories": shares,
            "mean_of_categories": float(np.mean([each["share"] for each in shares.values()])),
            "captions_not_of_shapes": int((category_N == _UNREADABLE).sum()),
        }
        terms_M = shown_N[mine_N].astype(np.float64)
        return MetricResult(self.name, float(terms_M.mean()), details, terms_M)


def _share(shown_N: Int64Array) -> dict[str, float]:
    """The share of ones, and its Wilson score interval (1927)."""
    from scipy import stats

    found = stats.binomtest(int(shown_N.sum()), len(shown_N)).proportion_ci(CONFIDENCE, method="wilson")
    return {
        "share": float(shown_N.mean()),
        "low": float(found.low),
        "high": float(found.high),
        "images": len(shown_N),
    }


METRICS: tuple[Metric, ...] = (Alignment(held_out=False), Alignment(held_out=True))

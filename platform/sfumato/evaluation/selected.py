"""What is measured: the features, the metrics on each, and the metrics' inputs other than features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sfumato.core.config import Config
from sfumato.evaluation.features.extractor import FeatureKind
from sfumato.evaluation.metric_inputs import MetricInput
from sfumato.evaluation.metrics.metric import Metric, MetricOptions, PairMetric


@dataclass(frozen=True, slots=True)
class Selection:
    """The feature kinds with their options, and the metrics with the features each is computed on.

    `pairs` are computed on images and their reconstructions.
    """

    features: Mapping[FeatureKind, Config]
    metrics: Sequence[tuple[Metric, FeatureKind, str]]
    options: MetricOptions
    pairs: Mapping[str, PairMetric]

    @property
    def needs_images(self) -> bool:
        return any(metric.needs_images for metric, _, _ in self.metrics)

    @property
    def inputs(self) -> dict[str, MetricInput]:
        """The metrics' inputs other than features, by name."""
        return {wanted.name: wanted for metric, _, _ in self.metrics for wanted in metric.inputs}

    @property
    def higher_is_better(self) -> dict[str, bool]:
        """By figure."""
        found = {name: metric.higher_is_better for metric, _, name in self.metrics}
        return found | {name: metric.higher_is_better for name, metric in self.pairs.items()}

"""Intra-class Fréchet distance (Miyato & Koyama 2018, section 5): the mean of the classes' own distances.

The distance of the whole sets cannot see a conditional model that makes good images of the wrong class; here
samples requested as a class are compared with the reference's images of that class.
"""

from __future__ import annotations

import numpy as np

from sfumato.core.batch import DataSpec
from sfumato.errors import DataError
from sfumato.evaluation.decisions.weakness import of_samples
from sfumato.evaluation.metrics.frechet import frechet_distance
from sfumato.evaluation.metrics.metric import BaseMetric, FeatureSet, Metric, MetricOptions, MetricResult
from sfumato.evaluation.statistics import Moments


class IntraClassFrechet(BaseMetric):
    """Lower is better. With few images per class, each distance has large bias: compare at equal numbers."""

    name = "intra_fd"
    needs_labels = True
    always_suffixed = True
    published: str | None = "intra_fid"

    def least_samples(self, options: MetricOptions) -> int:
        """Two of one class; `compute` refuses classes with fewer."""
        return 2

    def covariance_samples(self, samples: int, classes: int, options: MetricOptions) -> int:
        """An average class."""
        return samples // max(1, classes)

    def problems(self, data: DataSpec) -> list[str]:
        """It compares by class."""
        if data.num_classes >= 1:
            return []
        return [f"{self.name} needs classes, this data has none: leave it out of evaluate.metrics"]

    def compute(self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> MetricResult:
        if reference.label_N is None or generated.label_N is None:
            raise DataError(
                f"{self.name} needs labelled reference images and a class-conditional model: leave it out of "
                "evaluate.metrics"
            )
        per_class: dict[int, float] = {}
        smallest = len(reference)
        for label in np.unique(reference.label_N).tolist():
            real, made = reference.label_N == label, generated.label_N == label
            fewest = int(min(real.sum(), made.sum()))
            if fewest < 2:
                raise DataError(
                    f"{self.name} needs 2 reference images and 2 samples of every class or more, "
                    f"class {label} has {int(real.sum())} and {int(made.sum())}: raise evaluate.samples"
                )
            smallest = min(smallest, fewest)
            per_class[label] = frechet_distance(
                Moments.of(reference.embedding_ND[real]), Moments.of(generated.embedding_ND[made])
            )
        worst = max(per_class, key=lambda label: per_class[label])
        details: dict[str, object] = {
            "per_class": {str(label): value for label, value in per_class.items()},
            "worst_class": worst,
        }
        marks = of_samples(smallest, reference.embedding_ND.shape[1])
        return MetricResult(self.name, float(np.mean(list(per_class.values()))), details, marks=marks)


METRICS: tuple[Metric, ...] = (IntraClassFrechet(),)

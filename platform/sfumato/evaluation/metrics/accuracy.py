"""Class accuracy: how often a classifier of the real images sees the requested class.

The classification accuracy score's cheaper sibling (Ravuri & Vinyals 2019 train on samples and test on real
images; here the classifier is trained on real images and judges samples). It rewards typical samples:
read it together with recall.
"""

from __future__ import annotations

import numpy as np

from sfumato.core.batch import DataSpec
from sfumato.errors import DataError
from sfumato.evaluation.metrics.metric import BaseMetric, FeatureSet, Metric, MetricOptions, MetricResult


class ClassAccuracy(BaseMetric):
    """Share of the conditional samples whose most probable class is the requested one."""

    name = "class_accuracy"
    higher_is_better = True
    in_auto = True
    needs_logits = True
    needs_labels = True

    def problems(self, data: DataSpec) -> list[str]:
        if data.num_classes >= 2:
            return []
        got = f"this data has {data.num_classes}"
        return [f"class_accuracy needs 2 or more classes, {got}: leave it out of evaluate.metrics"]

    def compute(self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> MetricResult:
        if generated.label_N is None or generated.logits_NK is None:
            raise DataError(
                "class_accuracy needs a class-conditional model and features that classify; got "
                f"{'no labels' if generated.label_N is None else 'no logits'}: "
                "leave it out of evaluate.metrics"
            )
        asked_N, classes = generated.label_N, generated.logits_NK.shape[1]
        hit_N = generated.logits_NK.argmax(axis=1) == asked_N
        per_class = {
            int(label): float(hit_N[asked_N == label].mean()) for label in np.unique(asked_N).tolist()
        }
        worst = min(per_class, key=lambda label: per_class[label])
        details: dict[str, object] = {
            "per_class": {str(label): value for label, value in per_class.items()},
            "worst_class": worst,
            "classes": classes,
        }
        return MetricResult(self.name, float(hit_N.mean()), details, hit_N.astype(np.float64))


METRICS: tuple[Metric, ...] = (ClassAccuracy(),)

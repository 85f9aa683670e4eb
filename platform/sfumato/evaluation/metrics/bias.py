"""Bias: which classes a model favours or neglects.

The shares of classes among the samples, as a classifier of the real images sees them, against those that it
sees in the real images themselves (its own errors are then on both sides), or against a target. The figure
is their total variation distance (`shares.py`). `details` have every share; `groups` have the same for the
samples that were asked for by one class, against the real images of that class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import Field

from sfumato.core.batch import DataSpec
from sfumato.core.config import Config
from sfumato.errors import ConfigError, DataError
from sfumato.evaluation.intervals.shares import FEWEST, compared
from sfumato.evaluation.metrics.metric import (
    BaseMetric,
    FeatureSet,
    Metric,
    MetricOptions,
    MetricResult,
    Topic,
)
from sfumato.evaluation.statistics import Float64Array, Int64Array


class BiasSettings(Config):
    """What is expected."""

    bias_target: dict[str, float] = Field(
        {},
        exclude_if=lambda value: not value,
        description="bias: the wanted share of each class, by its number, adding up to 1; empty: as in the "
        "real images.",
    )


class Bias(BaseMetric):
    """Total variation between the samples' classes and those wanted, 0 to 1; lower is better."""

    Settings = BiasSettings
    name = "bias"
    topic: Topic = "bias"
    needs_logits = True

    def problems(self, data: DataSpec) -> list[str]:
        if data.num_classes >= 2:
            return []
        got = f"this data has {data.num_classes}"
        return [f"bias needs 2 or more classes, {got}: leave it out of evaluate.metrics"]

    def compute(self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> MetricResult:
        """Raises DataError without logits, ConfigError for a target of other classes."""
        if reference.logits_NK is None or generated.logits_NK is None:
            raise DataError("bias needs features that classify: leave it out of evaluate.metrics")
        classes = reference.logits_NK.shape[1]
        names = [str(label) for label in range(classes)]
        real_N, made_M = reference.logits_NK.argmax(1), generated.logits_NK.argmax(1)
        given = options.of(BiasSettings).bias_target
        target_K = _target(given, names) if given else np.bincount(real_N, minlength=classes) / len(real_N)
        count_K = np.bincount(made_M, minlength=classes)
        found = compared(count_K, target_K, names, options.settings.seed)
        found["target"] = "evaluate.metric_options.bias_target" if given else "the real images"
        if generated.label_N is not None:
            found["groups"] = self._groups(
                reference, real_N, made_M, generated.label_N, options.settings.seed
            )
        return MetricResult(self.name, found.pop("distance"), found)

    def _groups(
        self,
        reference: FeatureSet,
        real_N: Int64Array,
        made_M: Int64Array,
        asked_M: Int64Array,
        seed: int,
    ) -> dict[str, object]:
        """By the class that was asked for: what is seen, against what is seen in the real images of it."""
        groups: dict[str, object] = {}
        assert reference.logits_NK is not None
        classes = reference.logits_NK.shape[1]
        names = [str(label) for label in range(classes)]
        for label in np.unique(asked_M).tolist():
            mine = made_M[asked_M == label]
            theirs = real_N[reference.label_N == label] if reference.label_N is not None else real_N
            if len(mine) < FEWEST or not len(theirs):
                continue
            target_K = np.bincount(theirs, minlength=classes) / len(theirs)
            groups[str(label)] = compared(np.bincount(mine, minlength=classes), target_K, names, seed)
        return groups


def _target(given: Mapping[str, float], names: Sequence[str]) -> Float64Array:
    if unknown := sorted(set(given) - set(names)):
        raise ConfigError(
            f"evaluate.metric_options.bias_target: {unknown[0]!r} is no class; they are numbered 0 to "
            f"{len(names) - 1}"
        )
    target_K = np.array([given.get(name, 0.0) for name in names])
    if not np.isclose(target_K.sum(), 1) or (target_K < 0).any():
        raise ConfigError(
            "evaluate.metric_options.bias_target: shares are at least 0 and add up to 1, got "
            f"{target_K.sum():g}"
        )
    return target_K


METRICS: tuple[Metric, ...] = (Bias(),)

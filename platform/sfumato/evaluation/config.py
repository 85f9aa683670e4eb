"""The `evaluate:` part of a recipe, and what it comes to for given data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from sfumato.core.batch import DataSpec
from sfumato.core.config import Config
from sfumato.errors import ConfigError
from sfumato.evaluation.features import all_features
from sfumato.evaluation.features.extractor import FeatureKind
from sfumato.evaluation.metrics import all_metrics
from sfumato.evaluation.metrics.metric import Metric, MetricOptions, MetricSettings, reported_name
from sfumato.evaluation.registry import unknown_names

AUTO = "auto"
FALLBACK_ORDER = ("classifier", "efficientnet_lite0")
"""What `auto` features try, in order: the first that this data and this machine can have."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The feature kinds with their options, and the metrics with the features each is computed on."""

    features: Mapping[FeatureKind, Config]
    metrics: Sequence[tuple[Metric, FeatureKind, str]]
    options: MetricOptions


class EvaluateSettings(Config):
    """What is generated, and what is measured on it."""

    samples: int = Field(2_000, ge=2, description="Images to generate. Compare runs at one number only.")
    features: Literal["auto"] | str | tuple[str, ...] = Field(
        AUTO,
        description="Feature extractor or a list of them: classifier, efficientnet_lite0. auto: classifier "
        "where the data has classes, efficientnet_lite0 elsewhere.",
    )
    feature_options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Options of extractors, by the extractor's name."
    )
    metrics: Literal["auto"] | str | tuple[str, ...] = Field(
        AUTO,
        description="Metric or a list of them: fd, precision, recall, class_accuracy. auto: all that the "
        "data, the features and the model permit.",
    )
    k: int = Field(3, ge=1, description="Nearest neighbour that sets a ball's radius in precision, recall.")
    metric_options: MetricSettings = Field(MetricSettings(), description="Options of single metrics.")
    seed: int = Field(0, ge=0, description="Seed of the samples; sample i depends on it and on i alone.")
    sampling: dict[str, Any] = Field(
        default_factory=dict, description="Overrides of the family's own sampling options."
    )
    actors: int = Field(
        2, ge=0, description="Ray actors that generate and extract; 0 works in the calling process."
    )
    cpus_per_actor: float = Field(1.0, gt=0, description="Logical CPUs that Ray reserves for an actor.")
    gpus_per_actor: float = Field(0.0, ge=0, description="GPUs, or parts of one, that Ray reserves for one.")
    start_timeout: float = Field(
        300.0, gt=0, description="Seconds to wait for the first actor before giving up."
    )
    preview: int = Field(64, ge=0, description="Generated images shown in the grid preview.png; 0: none.")
    cache: Path | None = Field(
        None, description="Folder of trained classifiers and reference features; null: the caller's."
    )

    def problems(self, data: DataSpec) -> list[str]:
        """What of this cannot be measured on this data on this machine, one line each."""
        found = self._unknown()
        if found:
            return found
        kinds = self._kinds(data)
        for kind in kinds:
            found += kind.problems(data)
        found += self._option_problems()
        metrics = all_metrics()
        for name in self._metric_names(data, conditional=True):
            metric = metrics[name]
            found += metric.problems(data)
            least = metric.least_samples(self._metric_options())
            if self.samples < least:
                k = f" with evaluate.k={self.k}" if least > 2 else ""
                found.append(f"evaluate.samples={self.samples} is too few for {name}{k}: {least} or more")
            if metric.only_features and not {kind.name for kind in kinds} & set(metric.only_features):
                found.append(
                    f"metric {name} is defined on features {' or '.join(metric.only_features)}, got "
                    f"{', '.join(kind.name for kind in kinds)}: add it to evaluate.features"
                )
            if metric.needs_logits and not any(kind.classifies for kind in kinds):
                able = ", ".join(name for name, kind in all_features().items() if kind.classifies)
                found.append(
                    f"metric {name} needs features that classify ({able}), got "
                    f"{', '.join(kind.name for kind in kinds)}: add one to evaluate.features"
                )
        return found

    def select(self, data: DataSpec, *, conditional: bool) -> Selection:
        """The features and metrics for this data and a model that takes labels or not.

        Raises ConfigError with all `problems`.
        """
        found = self.problems(data)
        if found:
            raise ConfigError(*found)
        kinds = self._kinds(data)
        all_named = all_metrics()
        chosen: list[tuple[Metric, FeatureKind, str]] = []
        for name in self._metric_names(data, conditional=conditional):
            metric = all_named[name]
            if metric.needs_labels and not conditional:
                raise ConfigError(
                    f"metric {name} needs a class-conditional model, and this one takes no labels: leave it "
                    "out of evaluate.metrics"
                )
            able = [kind for kind in kinds if _suits(metric, kind)]
            several = len(able) > 1
            chosen += [(metric, kind, reported_name(metric, kind.name, several=several)) for kind in able]
        options = {kind: kind.options(**self.feature_options.get(kind.name, {})) for kind in kinds}
        return Selection(options, chosen, self._metric_options())

    def _unknown(self) -> list[str]:
        found = unknown_names("evaluate.feature_options", self.feature_options, all_features())
        if self.features != AUTO:
            found += unknown_names("evaluate.features", _listed(self.features), all_features())
        if self.metrics != AUTO:
            found += unknown_names("evaluate.metrics", _listed(self.metrics), all_metrics())
        for field, value in (("features", self.features), ("metrics", self.metrics)):
            names = _listed(value)
            if not names or len(set(names)) < len(names):
                found.append(f"evaluate.{field}: needs one name or more, each once, got {list(names)}")
        return found

    def _option_problems(self) -> list[str]:
        found = []
        for name, values in self.feature_options.items():
            try:
                all_features()[name].options(**values)
            except ValidationError as error:
                found += [
                    f"evaluate.feature_options.{name}.{'.'.join(map(str, item['loc']))}: {item['msg']}"
                    for item in error.errors()
                ]
        return found

    def _kinds(self, data: DataSpec) -> list[FeatureKind]:
        known = all_features()
        if self.features != AUTO:
            return [known[name] for name in _listed(self.features)]
        able = [name for name in FALLBACK_ORDER if not known[name].problems(data)]
        return [known[(able or FALLBACK_ORDER[-1:])[0]]]

    def _metric_names(self, data: DataSpec, *, conditional: bool) -> list[str]:
        if self.metrics != AUTO:
            return list(_listed(self.metrics))
        classifies = any(kind.classifies for kind in self._kinds(data))
        return [
            name
            for name, metric in all_metrics().items()
            if metric.in_auto
            and (classifies or not metric.needs_logits)
            and (not metric.needs_labels or (conditional and data.num_classes > 0))
        ]

    def _metric_options(self) -> MetricOptions:
        return MetricOptions(k=self.k, settings=self.metric_options)


def _suits(metric: Metric, kind: FeatureKind) -> bool:
    named = not metric.only_features or kind.name in metric.only_features
    return named and (kind.classifies or not metric.needs_logits)


def _listed(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)

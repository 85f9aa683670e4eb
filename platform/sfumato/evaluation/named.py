"""What an evaluation's settings name: features, and metrics on them; `auto` is what suits the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from sfumato.core.batch import DataSpec
from sfumato.core.finding import unknown_names
from sfumato.core.validation import explain
from sfumato.errors import ConfigError
from sfumato.evaluation.config import AUTO, EvaluateSettings
from sfumato.evaluation.features import all_features, own_features
from sfumato.evaluation.features.extractor import FeatureKind
from sfumato.evaluation.metric_inputs import MetricInput
from sfumato.evaluation.metrics import all_metrics, all_pair_metrics, own_metric
from sfumato.evaluation.metrics.metric import Metric, MetricOptions, PairMetric, reported_name
from sfumato.evaluation.subjects.source import Kind

SMALL_SIDE = 64
"""Grey images up to this size are small: ImageNet's features are of larger ones, in colour."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What is evaluated: whether its images have classes, asked for or their own, which inputs it gives,
    what its images are (None: not known yet), and whether the reference's real images trained it."""

    conditional: bool
    gives: Callable[[MetricInput], bool]
    kind: Kind | None
    trained_on: bool = False


def everything(wanted: MetricInput) -> bool:
    """For what is not known yet."""
    return True


ANYTHING = Offer(conditional=True, gives=everything, kind=None)


def kinds_of(settings: EvaluateSettings, data: DataSpec) -> list[FeatureKind]:
    """The kinds of features."""
    if settings.features != AUTO:
        return [features_of(name) for name in _listed(settings.features)]
    return [features_of(settings.auto_features or auto_features(data))]


def metric_names(settings: EvaluateSettings, data: DataSpec, offer: Offer) -> list[str]:
    """The metrics of a set of images."""
    if settings.metrics != AUTO:
        return [name for name in _listed(settings.metrics) if not _is_pair(name)]
    classifies = any(kind.classifies for kind in kinds_of(settings, data))
    return [
        name
        for name, metric in all_metrics().items()
        if metric.in_auto
        and (classifies or not metric.needs_logits)
        and (not metric.needs_labels or (offer.conditional and data.num_classes > 0))
        and all(offer.gives(wanted) for wanted in metric.inputs)
        and (offer.kind != "reconstructions" or metric.of_reconstructions)
    ]


def pair_names(settings: EvaluateSettings, data: DataSpec, offer: Offer) -> list[str]:
    """The metrics of reconstructions beside their originals."""
    if settings.metrics != AUTO:
        return [name for name in _listed(settings.metrics) if _is_pair(name)]
    if offer.kind != "reconstructions":
        return []
    return [name for name, metric in all_pair_metrics().items() if not metric.problems(data)]


def options_of(settings: EvaluateSettings) -> MetricOptions:
    """The settings of the metrics."""
    return MetricOptions(k=settings.k, settings=settings.metric_options)


def auto_features(data: DataSpec) -> str:
    """What `features: auto` stands for: a function of the data alone, never of the machine."""
    small = data.channels == 1 and max(data.height, data.width) <= SMALL_SIDE
    imagenet = data.channels == 3 or (data.channels == 1 and not small)
    classifies = not all_features()["classifier"].problems(data)
    return "classifier" if classifies and not imagenet else "efficientnet_lite0"


def auto_features_before(data: DataSpec) -> str:
    """What it stood for before a run's recipe.yaml recorded it: the classifier wherever there are classes."""
    return "efficientnet_lite0" if all_features()["classifier"].problems(data) else "classifier"


def on_features(
    metric: Metric, kinds: Sequence[FeatureKind], offer: Offer
) -> list[tuple[Metric, FeatureKind, str]]:
    """The metric on every kind of features that suits it, each under its name in the report."""
    if not metric.reads_features:
        name = metric.name_on_training if offer.trained_on else ""
        return [(metric, kinds[0], name or metric.name)]
    able = [kind for kind in kinds if _suits(metric, kind)]
    prefix = "r" if offer.kind == "reconstructions" else ""
    return [(metric, kind, prefix + reported_name(metric, kind.name, several=len(able) > 1)) for kind in able]


def _suits(metric: Metric, kind: FeatureKind) -> bool:
    named = not metric.only_features or kind.name in metric.only_features
    logits = kind.gives_logits or not metric.needs_any_logits
    return named and logits and (kind.classifies or not metric.needs_logits)


def metric_of(name: str) -> Metric:
    """A built-in metric, or one of an import path."""
    return own_metric(name) if ":" in name else all_metrics()[name]  # type: ignore[return-value]


def pair_metric_of(name: str) -> PairMetric:
    """A built-in metric of reconstructions, or one of an import path."""
    return own_metric(name) if ":" in name else all_pair_metrics()[name]  # type: ignore[return-value]


def features_of(name: str) -> FeatureKind:
    """A built-in kind of features, or one of an import path."""
    return own_features(name) if ":" in name else all_features()[name]


def unknown(settings: EvaluateSettings) -> list[str]:
    """Names and import paths of nothing, one line each."""
    kinds, metrics = _listed(settings.features), _listed(settings.metrics)
    found = _not_there(
        "evaluate.feature_options", list(settings.feature_options), all_features(), own_features
    )
    if settings.features != AUTO:
        found += _not_there("evaluate.features", kinds, all_features(), own_features)
    if settings.metrics != AUTO:
        known = {**all_metrics(), **all_pair_metrics()}
        found += _not_there("evaluate.metrics", metrics, known, own_metric)
    for field, names in (("features", kinds), ("metrics", metrics)):
        if not names or len(set(names)) < len(names):
            found.append(f"evaluate.{field}: needs one name or more, each once, got {list(names)}")
    return found


def option_problems(settings: EvaluateSettings) -> list[str]:
    """Options that a kind of features does not take, one line each."""
    found = []
    for name, values in settings.feature_options.items():
        try:
            features_of(name).options(**values)
        except ValidationError as error:
            found += explain(error, all_features()[name].options, ("evaluate", "feature_options", name))
    return found


def _not_there(
    field: str, names: Sequence[str], known: Mapping[str, object], own: Callable[[str], object]
) -> list[str]:
    """Names and import paths of nothing, one line each."""
    found = unknown_names(field, [name for name in names if ":" not in name], known)
    for path in (name for name in names if ":" in name):
        try:
            own(path)
        except ConfigError as error:
            found += [f"{field}: {problem}" for problem in error.problems]
    return found


def _is_pair(name: str) -> bool:
    return hasattr(own_metric(name), "compare") if ":" in name else name in all_pair_metrics()


def _listed(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)

"""What an evaluation's settings come to for given data: which features, and which metrics on them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import ValidationError

from sfumato.core.batch import DataSpec
from sfumato.core.finding import unknown_names
from sfumato.core.validation import explain
from sfumato.errors import ConfigError
from sfumato.evaluation.config import AUTO, EvaluateSettings
from sfumato.evaluation.features import all_features, own_features
from sfumato.evaluation.features.extractor import FeatureKind, HasDimension
from sfumato.evaluation.metric_inputs import MetricInput
from sfumato.evaluation.metrics import all_metrics, all_pair_metrics, own_metric
from sfumato.evaluation.metrics.likelihood import Likelihood, chooses_by_training
from sfumato.evaluation.metrics.metric import Metric, MetricOptions, PairMetric, reported_name
from sfumato.evaluation.selected import Selection
from sfumato.evaluation.source import Kind
from sfumato.evaluation.weakness import of_samples, refusal

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


def problems(settings: EvaluateSettings, data: DataSpec, images: int | None = None) -> list[str]:
    """What of the settings cannot be measured on this data on this machine, one line each.

    `images`: how many the reference has, if that is known.
    """
    found = _unknown(settings)
    if found:
        return found
    kinds = _kinds(settings, data)
    for kind in kinds:
        found += kind.problems(data)
    found += _option_problems(settings)
    for name in _metric_names(settings, data, ANYTHING):
        found += _metric_problems(settings, metric_of(name), kinds, data)
    for name in _pair_names(settings, data, ANYTHING):
        found += pair_metric_of(name).problems(data)
    wanted = [each for name in _metric_names(settings, data, ANYTHING) for each in metric_of(name).inputs]
    if settings.held_out is not None and not any(each.reads_held_out for each in wanted):
        found.append(
            "evaluate.held_out is read by metrics on memorisation (memorisation, extraction): add one to "
            "evaluate.metrics"
        )
    if settings.likelihood_on is not None and not any(isinstance(each, Likelihood) for each in wanted):
        found.append("evaluate.likelihood_on is read by bits_per_dim alone: add it to evaluate.metrics")
    return found + _during_problems(settings, data, kinds, images)


def select(settings: EvaluateSettings, data: DataSpec, offer: Offer) -> Selection:
    """The features and metrics. Raises ConfigError for what the data or the evaluated cannot give."""
    found = problems(settings, data)
    if found:
        raise ConfigError(*found)
    kinds = _kinds(settings, data)
    chosen: list[tuple[Metric, FeatureKind, str]] = []
    for name in _metric_names(settings, data, offer):
        metric = metric_of(name)
        _check_offered(metric, offer)
        chosen += _on_features(metric, kinds, offer)
    names = _pair_names(settings, data, offer)
    if names and offer.kind != "reconstructions":
        raise ConfigError(
            f"metric {names[0]} compares images with their reconstructions, and this evaluates "
            f"{offer.kind}: leave it out of evaluate.metrics"
        )
    options = {kind: kind.options(**settings.feature_options.get(kind.name, {})) for kind in kinds}
    pairs = {pair_metric_of(name).name: pair_metric_of(name) for name in names}
    return Selection(options, chosen, _metric_options(settings), pairs)


def _check_offered(metric: Metric, offer: Offer) -> None:
    lacking = next((wanted.lacking(offer.kind) for wanted in metric.inputs if not offer.gives(wanted)), None)
    if metric.needs_labels and not offer.conditional:
        what = "these images have none" if offer.kind == "images" else "this one takes no labels"
        of = "images with classes" if offer.kind == "images" else "a class-conditional model"
        lacking = f"{of}, and {what}"
    if lacking:
        raise ConfigError(f"metric {metric.name} needs {lacking}: leave it out of evaluate.metrics")


def _on_features(
    metric: Metric, kinds: Sequence[FeatureKind], offer: Offer
) -> list[tuple[Metric, FeatureKind, str]]:
    """The metric on every kind of features that suits it, each under its name in the report."""
    if not metric.reads_features:
        name = metric.name_on_training if offer.trained_on else ""
        return [(metric, kinds[0], name or metric.name)]
    able = [kind for kind in kinds if _suits(metric, kind)]
    prefix = "r" if offer.kind == "reconstructions" else ""
    return [(metric, kind, prefix + reported_name(metric, kind.name, several=len(able) > 1)) for kind in able]


def _metric_problems(
    settings: EvaluateSettings, metric: Metric, kinds: Sequence[FeatureKind], data: DataSpec
) -> list[str]:
    found = list(metric.problems(data))
    given = ", ".join(kind.name for kind in kinds)
    least = metric.least_samples(_metric_options(settings))
    for field, number in (("samples", settings.samples), ("samples_during", settings.samples_during)):
        if number is not None and number < least:
            k = f" with evaluate.k={settings.k}" if least > 2 else ""
            found.append(f"evaluate.{field}={number} is too few for {metric.name}{k}: {least} or more")
    if metric.only_features and not {kind.name for kind in kinds} & set(metric.only_features):
        found.append(
            f"metric {metric.name} is defined on features {' or '.join(metric.only_features)}, got {given}: "
            "add it to evaluate.features"
        )
    if metric.needs_logits and not any(kind.classifies for kind in kinds):
        able = ", ".join(name for name, kind in all_features().items() if kind.classifies)
        found.append(
            f"metric {metric.name} needs features that classify ({able}), got {given}: "
            "add one to evaluate.features"
        )
    if metric.needs_any_logits and not any(kind.gives_logits for kind in kinds):
        able = ", ".join(name for name, kind in all_features().items() if kind.gives_logits)
        found.append(
            f"metric {metric.name} needs features that give logits ({able}), got {given}: "
            "add one to evaluate.features"
        )
    return found


def _during_problems(
    settings: EvaluateSettings, data: DataSpec, kinds: Sequence[FeatureKind], images: int | None
) -> list[str]:
    """What cannot be decided while training goes on."""
    found = []
    for field in ("best", "early_stop"):
        choice = getattr(settings, field)
        if choice is None:
            continue
        if settings.every is None:
            found.append(f"evaluate.{field} needs evaluations in training: set evaluate.every to images")
        if by_training := chooses_by_training(f"evaluate.{field}", choice.metric, settings.likelihood_on):
            found += by_training
            continue
        figures = _figures(settings, data, kinds)
        found += unknown_names(f"evaluate.{field}.metric", [choice.metric], figures)
        found += _weak(f"evaluate.{field}.metric", choice.metric, figures, settings, data, images)
    return found + _collapse_problems(settings, data, kinds)


def _collapse_problems(settings: EvaluateSettings, data: DataSpec, kinds: Sequence[FeatureKind]) -> list[str]:
    if settings.collapse is None:
        acts = settings.on_collapse != "warn"
        return ["evaluate.on_collapse needs limits: set evaluate.collapse={}"] if acts else []
    found = []
    if settings.on_collapse == "restore_best" and settings.best is None:
        found.append(
            "evaluate.on_collapse=restore_best needs a best model: set evaluate.best, for example "
            "evaluate.best.metric=fd_classifier"
        )
    if settings.every is None:
        found.append("evaluate.collapse needs evaluations in training: set evaluate.every to images")
    watched = settings.collapse.watched
    if not any(name.startswith(tuple(watched)) for name in _figures(settings, data, kinds)):
        names = ", ".join(watched) or "nothing"
        found.append(f"evaluate.collapse watches {names}: add one of the figures to evaluate.metrics")
    return found


def _weak(
    field: str,
    figure: str,
    figures: Mapping[str, tuple[Metric, FeatureKind] | None],
    settings: EvaluateSettings,
    data: DataSpec,
    images: int | None,
) -> list[str]:
    """Why the figure will decide nothing, as far as that is known beforehand."""
    by = figures.get(figure)
    if by is None or settings.accept_weak_features:
        return []
    metric, kind = by
    if not isinstance(kind, HasDimension):
        return []
    dim = kind.dimension(kind.options(**settings.feature_options.get(kind.name, {})), data)
    samples = min(settings.during().samples, images or sys.maxsize)
    fewest = metric.covariance_samples(samples, data.num_classes, _metric_options(settings))
    marks = () if fewest is None or dim is None else of_samples(fewest, dim)
    fix = "raise the number of images (evaluate.samples, samples_during) or choose another figure"
    return [refusal(field, figure, marks, fix=fix)] if marks else []


def _figures(
    settings: EvaluateSettings, data: DataSpec, kinds: Sequence[FeatureKind]
) -> dict[str, tuple[Metric, FeatureKind] | None]:
    """Every name that a report of these settings may have, and what is behind a figure on features."""
    found: dict[str, tuple[Metric, FeatureKind] | None] = {}
    kinds_of_images: tuple[Kind, ...] = ("samples", "reconstructions")
    for kind in kinds_of_images:
        offer = replace(ANYTHING, kind=kind)
        for name in _metric_names(settings, data, offer):
            behind = _on_features(metric_of(name), kinds, offer)
            found |= {figure: (metric, kind) for metric, kind, figure in behind}
        found |= dict.fromkeys(_pair_names(settings, data, offer))
    return found


def metric_of(name: str) -> Metric:
    """A built-in metric, or one of an import path."""
    return own_metric(name) if ":" in name else all_metrics()[name]  # type: ignore[return-value]


def pair_metric_of(name: str) -> PairMetric:
    """A built-in metric of reconstructions, or one of an import path."""
    return own_metric(name) if ":" in name else all_pair_metrics()[name]  # type: ignore[return-value]


def features_of(name: str) -> FeatureKind:
    """A built-in kind of features, or one of an import path."""
    return own_features(name) if ":" in name else all_features()[name]


def _is_pair(name: str) -> bool:
    return hasattr(own_metric(name), "compare") if ":" in name else name in all_pair_metrics()


def _unknown(settings: EvaluateSettings) -> list[str]:
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


def _option_problems(settings: EvaluateSettings) -> list[str]:
    found = []
    for name, values in settings.feature_options.items():
        try:
            features_of(name).options(**values)
        except ValidationError as error:
            found += explain(error, all_features()[name].options, ("evaluate", "feature_options", name))
    return found


def _kinds(settings: EvaluateSettings, data: DataSpec) -> list[FeatureKind]:
    if settings.features != AUTO:
        return [features_of(name) for name in _listed(settings.features)]
    return [features_of(settings.auto_features or auto_features(data))]


def auto_features(data: DataSpec) -> str:
    """What `features: auto` stands for: a function of the data alone, never of the machine."""
    small = data.channels == 1 and max(data.height, data.width) <= SMALL_SIDE
    imagenet = data.channels == 3 or (data.channels == 1 and not small)
    classifies = not all_features()["classifier"].problems(data)
    return "classifier" if classifies and not imagenet else "efficientnet_lite0"


def auto_features_before(data: DataSpec) -> str:
    """What it stood for before a run's recipe.yaml recorded it: the classifier wherever there are classes."""
    return "efficientnet_lite0" if all_features()["classifier"].problems(data) else "classifier"


def _metric_names(settings: EvaluateSettings, data: DataSpec, offer: Offer) -> list[str]:
    if settings.metrics != AUTO:
        return [name for name in _listed(settings.metrics) if not _is_pair(name)]
    classifies = any(kind.classifies for kind in _kinds(settings, data))
    return [
        name
        for name, metric in all_metrics().items()
        if metric.in_auto
        and (classifies or not metric.needs_logits)
        and (not metric.needs_labels or (offer.conditional and data.num_classes > 0))
        and all(offer.gives(wanted) for wanted in metric.inputs)
        and (offer.kind != "reconstructions" or metric.of_reconstructions)
    ]


def _pair_names(settings: EvaluateSettings, data: DataSpec, offer: Offer) -> list[str]:
    if settings.metrics != AUTO:
        return [name for name in _listed(settings.metrics) if _is_pair(name)]
    if offer.kind != "reconstructions":
        return []
    return [name for name, metric in all_pair_metrics().items() if not metric.problems(data)]


def _metric_options(settings: EvaluateSettings) -> MetricOptions:
    return MetricOptions(k=settings.k, settings=settings.metric_options)


def _suits(metric: Metric, kind: FeatureKind) -> bool:
    named = not metric.only_features or kind.name in metric.only_features
    logits = kind.gives_logits or not metric.needs_any_logits
    return named and logits and (kind.classifies or not metric.needs_logits)


def _listed(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)

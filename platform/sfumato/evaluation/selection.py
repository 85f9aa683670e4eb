"""What an evaluation's settings come to for given data: which features, and which metrics on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from pydantic import ValidationError

from sfumato.core.batch import DataSpec
from sfumato.core.config import Config
from sfumato.core.validation import explain
from sfumato.errors import ConfigError
from sfumato.evaluation.features import all_features
from sfumato.evaluation.features.extractor import FeatureKind
from sfumato.evaluation.metrics import all_metrics, all_pair_metrics
from sfumato.evaluation.metrics.metric import Metric, MetricOptions, PairMetric, reported_name
from sfumato.evaluation.registry import unknown_names
from sfumato.evaluation.source import Kind

if TYPE_CHECKING:
    from sfumato.evaluation.config import EvaluateSettings

AUTO: Literal["auto"] = "auto"
FALLBACK_ORDER = ("classifier", "efficientnet_lite0")
"""What `auto` features try, in order: the first that this data and this machine can have."""
OF_RECONSTRUCTIONS = ("fd",)
"""Metrics of features that `auto` computes on reconstructions, beside those of pairs of images."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What is evaluated can do: see `EvaluateSettings.select`."""

    conditional: bool
    likelihood: bool
    captions: bool
    latent: bool
    kind: Kind | None
    """None: not known yet."""


ANYTHING = Offer(conditional=True, likelihood=True, captions=True, latent=True, kind=None)


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
    def needs_likelihood(self) -> bool:
        return any(metric.needs_likelihood for metric, _, _ in self.metrics)

    @property
    def needs_captions(self) -> bool:
        return any(metric.needs_captions for metric, _, _ in self.metrics)

    @property
    def needs_held_out(self) -> bool:
        return any(metric.reads_held_out for metric, _, _ in self.metrics)

    @property
    def needs_paths(self) -> bool:
        return any(metric.needs_paths for metric, _, _ in self.metrics)

    @property
    def higher_is_better(self) -> dict[str, bool]:
        """By figure."""
        found = {name: metric.higher_is_better for metric, _, name in self.metrics}
        return found | {name: metric.higher_is_better for name, metric in self.pairs.items()}


def problems(settings: EvaluateSettings, data: DataSpec) -> list[str]:
    """What of the settings cannot be measured on this data on this machine, one line each."""
    found = _unknown(settings)
    if found:
        return found
    kinds = _kinds(settings, data)
    for kind in kinds:
        found += kind.problems(data)
    found += _option_problems(settings)
    for name in _metric_names(settings, data, ANYTHING):
        found += _metric_problems(settings, all_metrics()[name], kinds, data)
    for name in _pair_names(settings, data, ANYTHING):
        found += all_pair_metrics()[name].problems(data)
    names = _metric_names(settings, data, ANYTHING)
    if settings.held_out is not None and not any(all_metrics()[name].reads_held_out for name in names):
        found.append("evaluate.held_out is read by metric memorisation alone: add it to evaluate.metrics")
    return found + _during_problems(settings, data, kinds)


def select(settings: EvaluateSettings, data: DataSpec, offer: Offer) -> Selection:
    """The features and metrics. Raises ConfigError for what the data or the evaluated cannot give."""
    found = problems(settings, data)
    if found:
        raise ConfigError(*found)
    kinds = _kinds(settings, data)
    chosen: list[tuple[Metric, FeatureKind, str]] = []
    for name in _metric_names(settings, data, offer):
        metric = all_metrics()[name]
        _check_offered(metric, offer)
        chosen += _on_features(metric, kinds, offer)
    names = _pair_names(settings, data, offer)
    if names and offer.kind != "reconstructions":
        raise ConfigError(
            f"metric {names[0]} compares images with their reconstructions, and this evaluates "
            f"{offer.kind}: leave it out of evaluate.metrics"
        )
    options = {kind: kind.options(**settings.feature_options.get(kind.name, {})) for kind in kinds}
    pairs = {name: all_pair_metrics()[name] for name in names}
    return Selection(options, chosen, _metric_options(settings), pairs)


def _check_offered(metric: Metric, offer: Offer) -> None:
    what = "these images have none" if offer.kind == "images" else "this one takes no labels"
    lacking = None
    if metric.needs_labels and not offer.conditional:
        of = "images with classes" if offer.kind == "images" else "a class-conditional model"
        lacking = f"{of}, and {what}"
    elif metric.needs_likelihood and not offer.likelihood:
        lacking = "a model with a likelihood, and this one has none"
    elif metric.needs_paths and not offer.latent:
        of = "and these are images" if offer.kind == "images" else "and this one has none"
        lacking = f"a model with a latent vector (gan, vae, flow), {of}"
    elif metric.needs_captions and not offer.captions:
        lacking = "images with captions, and these have none"
    if lacking:
        raise ConfigError(f"metric {metric.name} needs {lacking}: leave it out of evaluate.metrics")


def _on_features(
    metric: Metric, kinds: Sequence[FeatureKind], offer: Offer
) -> list[tuple[Metric, FeatureKind, str]]:
    """The metric on every kind of features that suits it, each under its name in the report."""
    if metric.needs_likelihood or metric.needs_paths:
        return [(metric, kinds[0], metric.name)]  # it reads no features
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


def _during_problems(settings: EvaluateSettings, data: DataSpec, kinds: Sequence[FeatureKind]) -> list[str]:
    """What cannot be decided while training goes on."""
    found = []
    for field in ("best", "early_stop"):
        choice = getattr(settings, field)
        if choice is None:
            continue
        if settings.every is None:
            found.append(f"evaluate.{field} needs evaluations in training: set evaluate.every to images")
        found += unknown_names(f"evaluate.{field}.metric", [choice.metric], _figures(settings, data, kinds))
    return found


def _figures(settings: EvaluateSettings, data: DataSpec, kinds: Sequence[FeatureKind]) -> dict[str, None]:
    """Every name that a report of these settings may have."""
    found: dict[str, None] = {}
    kinds_of_images: tuple[Kind, ...] = ("samples", "reconstructions")
    for kind in kinds_of_images:
        offer = replace(ANYTHING, kind=kind)
        for name in _metric_names(settings, data, offer):
            found |= dict.fromkeys(figure for _, _, figure in _on_features(all_metrics()[name], kinds, offer))
        found |= dict.fromkeys(_pair_names(settings, data, offer))
    return found


def _unknown(settings: EvaluateSettings) -> list[str]:
    found = unknown_names("evaluate.feature_options", settings.feature_options, all_features())
    if settings.features != AUTO:
        found += unknown_names("evaluate.features", _listed(settings.features), all_features())
    if settings.metrics != AUTO:
        known = {**all_metrics(), **all_pair_metrics()}
        found += unknown_names("evaluate.metrics", _listed(settings.metrics), known)
    for field, value in (("features", settings.features), ("metrics", settings.metrics)):
        names = _listed(value)
        if not names or len(set(names)) < len(names):
            found.append(f"evaluate.{field}: needs one name or more, each once, got {list(names)}")
    return found


def _option_problems(settings: EvaluateSettings) -> list[str]:
    found = []
    for name, values in settings.feature_options.items():
        try:
            all_features()[name].options(**values)
        except ValidationError as error:
            found += explain(error, all_features()[name].options, ("evaluate", "feature_options", name))
    return found


def _kinds(settings: EvaluateSettings, data: DataSpec) -> list[FeatureKind]:
    known = all_features()
    if settings.features != AUTO:
        return [known[name] for name in _listed(settings.features)]
    able = [name for name in FALLBACK_ORDER if not known[name].problems(data)]
    return [known[(able or FALLBACK_ORDER[-1:])[0]]]


def _metric_names(settings: EvaluateSettings, data: DataSpec, offer: Offer) -> list[str]:
    if settings.metrics != AUTO:
        return [name for name in _listed(settings.metrics) if name not in all_pair_metrics()]
    classifies = any(kind.classifies for kind in _kinds(settings, data))
    return [
        name
        for name, metric in all_metrics().items()
        if metric.in_auto
        and (classifies or not metric.needs_logits)
        and (not metric.needs_labels or (offer.conditional and data.num_classes > 0))
        and (offer.likelihood or not metric.needs_likelihood)
        and (offer.captions or not metric.needs_captions)
        and (offer.kind != "reconstructions" or name in OF_RECONSTRUCTIONS or metric.needs_likelihood)
    ]


def _pair_names(settings: EvaluateSettings, data: DataSpec, offer: Offer) -> list[str]:
    if settings.metrics != AUTO:
        return [name for name in _listed(settings.metrics) if name in all_pair_metrics()]
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

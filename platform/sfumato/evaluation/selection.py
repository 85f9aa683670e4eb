"""What an evaluation's settings come to for given data: which features, and which metrics on them."""

from __future__ import annotations

from collections.abc import Sequence

from sfumato.core.batch import DataSpec
from sfumato.errors import ConfigError
from sfumato.evaluation.config import EvaluateSettings
from sfumato.evaluation.decisions.deciding import during_problems
from sfumato.evaluation.features import all_features
from sfumato.evaluation.features.extractor import FeatureKind
from sfumato.evaluation.metrics.likelihood import Likelihood
from sfumato.evaluation.metrics.metric import Metric
from sfumato.evaluation.named import (
    ANYTHING,
    Offer,
    kinds_of,
    metric_names,
    metric_of,
    on_features,
    option_problems,
    options_of,
    pair_metric_of,
    pair_names,
    unknown,
)
from sfumato.evaluation.selected import Selection


def problems(settings: EvaluateSettings, data: DataSpec, images: int | None = None) -> list[str]:
    """What of the settings cannot be measured on this data on this machine, one line each.

    `images`: how many the reference has, if that is known.
    """
    found = unknown(settings)
    if found:
        return found
    kinds = kinds_of(settings, data)
    for kind in kinds:
        found += kind.problems(data)
    found += option_problems(settings)
    for name in metric_names(settings, data, ANYTHING):
        found += _metric_problems(settings, metric_of(name), kinds, data)
    for name in pair_names(settings, data, ANYTHING):
        found += pair_metric_of(name).problems(data)
    wanted = [each for name in metric_names(settings, data, ANYTHING) for each in metric_of(name).inputs]
    if settings.held_out is not None and not any(each.reads_held_out for each in wanted):
        found.append(
            "evaluate.held_out is read by metrics on memorisation (memorisation, extraction): add one to "
            "evaluate.metrics"
        )
    if settings.likelihood_on is not None and not any(isinstance(each, Likelihood) for each in wanted):
        found.append("evaluate.likelihood_on is read by bits_per_dim alone: add it to evaluate.metrics")
    return found + during_problems(settings, data, kinds, images)


def select(settings: EvaluateSettings, data: DataSpec, offer: Offer) -> Selection:
    """The features and metrics. Raises ConfigError for what the data or the evaluated cannot give."""
    found = problems(settings, data)
    if found:
        raise ConfigError(*found)
    kinds = kinds_of(settings, data)
    chosen: list[tuple[Metric, FeatureKind, str]] = []
    for name in metric_names(settings, data, offer):
        metric = metric_of(name)
        _check_offered(metric, offer)
        chosen += on_features(metric, kinds, offer)
    names = pair_names(settings, data, offer)
    if names and offer.kind != "reconstructions":
        raise ConfigError(
            f"metric {names[0]} compares images with their reconstructions, and this evaluates "
            f"{offer.kind}: leave it out of evaluate.metrics"
        )
    options = {kind: kind.options(**settings.feature_options.get(kind.name, {})) for kind in kinds}
    pairs = {pair_metric_of(name).name: pair_metric_of(name) for name in names}
    return Selection(options, chosen, options_of(settings), pairs)


def _check_offered(metric: Metric, offer: Offer) -> None:
    lacking = next((wanted.lacking(offer.kind) for wanted in metric.inputs if not offer.gives(wanted)), None)
    if metric.needs_labels and not offer.conditional:
        what = "these images have none" if offer.kind == "images" else "this one takes no labels"
        of = "images with classes" if offer.kind == "images" else "a class-conditional model"
        lacking = f"{of}, and {what}"
    if lacking:
        raise ConfigError(f"metric {metric.name} needs {lacking}: leave it out of evaluate.metrics")


def _metric_problems(
    settings: EvaluateSettings, metric: Metric, kinds: Sequence[FeatureKind], data: DataSpec
) -> list[str]:
    found = list(metric.problems(data))
    given = ", ".join(kind.name for kind in kinds)
    least = metric.least_samples(options_of(settings))
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

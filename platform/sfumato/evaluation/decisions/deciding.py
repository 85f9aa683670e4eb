"""Whether the figures that settings decide by while a model trains can decide: which model is the best, when
to stop, and what counts as a collapse."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace

from sfumato.core.batch import DataSpec
from sfumato.core.finding import unknown_names
from sfumato.evaluation.config import EvaluateSettings
from sfumato.evaluation.decisions.weakness import of_samples, refusal
from sfumato.evaluation.features.extractor import FeatureKind, HasDimension
from sfumato.evaluation.metrics.likelihood import chooses_by_training
from sfumato.evaluation.metrics.metric import Metric
from sfumato.evaluation.named import ANYTHING, metric_names, metric_of, on_features, options_of, pair_names
from sfumato.evaluation.subjects.source import Kind


def during_problems(
    settings: EvaluateSettings, data: DataSpec, kinds: Sequence[FeatureKind], images: int | None
) -> list[str]:
    """What cannot be decided while training goes on, one line each."""
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
    fewest = metric.covariance_samples(samples, data.num_classes, options_of(settings))
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
        for name in metric_names(settings, data, offer):
            behind = on_features(metric_of(name), kinds, offer)
            found |= {figure: (metric, kind) for metric, kind, figure in behind}
        found |= dict.fromkeys(pair_names(settings, data, offer))
    return found

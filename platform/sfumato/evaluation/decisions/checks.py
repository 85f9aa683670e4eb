"""Refuses, before anything is made, sets that do not go together and too few images."""

from __future__ import annotations

from sfumato.errors import ConfigError, DataError
from sfumato.evaluation.config import AUTO, EvaluateSettings
from sfumato.evaluation.metrics.likelihood import digests
from sfumato.evaluation.named import Offer
from sfumato.evaluation.references.reference import Reference
from sfumato.evaluation.references.statistics import ONLY, StatisticsReference
from sfumato.evaluation.selected import Selection
from sfumato.evaluation.selection import select
from sfumato.evaluation.subjects.images import check_same_kind
from sfumato.evaluation.subjects.source import GivesCaptions, GivesLikelihood, SampleSource


def selected(settings: EvaluateSettings, source: SampleSource, reference: Reference) -> Selection:
    """The metrics that suit this source and this reference. Raises ConfigError naming any other."""
    # Classes of a folder of images are those of the reference only if they have the same names.
    same_classes = source.kind != "images" or source.spec.classes == reference.spec.classes
    trained_on = source.trained_on if isinstance(source, GivesLikelihood) else None
    offer = Offer(
        source.conditional and same_classes,
        lambda wanted: wanted.given_by(source),
        source.kind,
        settings.likelihood_on is None and trained_on in digests(reference),
    )
    return select(settings, reference.spec, offer)


def narrowed(settings: EvaluateSettings, reference: StatisticsReference) -> EvaluateSettings:
    """The settings with the one metric that moments allow. Raises ConfigError naming any other."""
    if settings.features == AUTO:
        raise ConfigError(f"{reference.path} does not record which features it is of: pass --features")
    asked = [settings.metrics] if isinstance(settings.metrics, str) else list(settings.metrics)
    if asked not in ([AUTO], [ONLY]):
        other = next(name for name in asked if name != ONLY)
        raise ConfigError(f"{other} needs the reference's images, but {reference.path} has only moments")
    return settings.model_copy(update={"metrics": ONLY})


def check_comparable(source: SampleSource, reference: Reference) -> None:
    """Raises DataError if images differ in kind, or the reference lacks the model's conditions."""
    what = "the images are" if source.kind == "images" else "the model makes"
    check_same_kind(source.spec, reference.spec, what=what)
    if source.kind != "samples":
        return
    if (
        source.conditional
        and not isinstance(reference, StatisticsReference)
        and source.spec.num_classes != reference.spec.num_classes
    ):
        raise DataError(
            f"the model has {source.spec.num_classes} classes and the reference "
            f"{reference.spec.num_classes}: evaluate against its training data"
        )
    if isinstance(source, GivesCaptions) and source.captioned:
        source.captions_of(0)


def check_enough(
    selection: Selection, settings: EvaluateSettings, source: SampleSource, reference: Reference
) -> None:
    """Raises DataError naming the number of images that a metric needs."""
    have = settings.samples if source.size is None else min(settings.samples, source.size)
    for metric, _, name in selection.metrics:
        least = metric.least_samples(selection.options)
        if reference.size < least:
            raise DataError(f"{name} needs {least} reference images or more, got {reference.size}")
        if have < least:
            raise DataError(f"{name} needs {least} images or more, got {have}")

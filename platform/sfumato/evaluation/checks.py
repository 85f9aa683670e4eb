"""What is refused before anything is made: sets that do not go together, and too few images."""

from __future__ import annotations

from sfumato.errors import ConfigError, DataError
from sfumato.evaluation.captions import GivesCaptions
from sfumato.evaluation.config import EvaluateSettings
from sfumato.evaluation.images import check_same_kind, open_images
from sfumato.evaluation.metrics.memorisation import least_held_out
from sfumato.evaluation.reference import Reference
from sfumato.evaluation.reference_statistics import StatisticsReference
from sfumato.evaluation.selection import Selection
from sfumato.evaluation.source import GivesLikelihood, SampleSource, WalksLatents


def selected(settings: EvaluateSettings, source: SampleSource, reference: Reference) -> Selection:
    """The metrics that suit this source and this reference. Raises ConfigError for others by name."""
    # Classes of a folder of images are those of the reference only if they have the same names.
    same_classes = source.kind != "images" or source.spec.classes == reference.spec.classes
    return settings.select(
        reference.spec,
        conditional=source.conditional and same_classes,
        likelihood=isinstance(source, GivesLikelihood),
        captions=isinstance(source, GivesCaptions) and source.captioned,
        latent=isinstance(source, WalksLatents),
        kind=source.kind,
    )


def check_comparable(source: SampleSource, reference: Reference) -> None:
    """Raises DataError where images differ in kind, or the reference lacks what the model is steered by."""
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
            f"{reference.spec.num_classes}: evaluate against the data that it was trained on"
        )
    if isinstance(source, GivesCaptions) and source.captioned:
        source.captions_of(0)


def check_enough(
    selection: Selection, settings: EvaluateSettings, source: SampleSource, reference: Reference
) -> None:
    """Raises DataError with the number that a metric needs."""
    have = settings.samples if source.size is None else min(settings.samples, source.size)
    for metric, _, name in selection.metrics:
        least = metric.least_samples(selection.options)
        if reference.size < least:
            raise DataError(f"{name} needs {least} reference images or more, got {reference.size}")
        if have < least:
            raise DataError(f"{name} needs {least} images or more, got {have}")


def held_out_images(
    settings: EvaluateSettings, selection: Selection, reference: Reference
) -> Reference | None:
    """The real images that the model was not trained on, where the settings name some.

    Raises DataError for another kind of images or too few, ConfigError for the reference itself.
    """
    if settings.held_out is None or not selection.needs_held_out:
        return None
    images = open_images(settings.held_out)
    check_same_kind(images.spec, reference.spec, what="the held-out images are")
    if images.digest == reference.digest:
        raise ConfigError(
            f"evaluate.held_out={settings.held_out} is the reference itself: name images that were not "
            "trained on, such as the val part of the data"
        )
    least = least_held_out(selection.options)
    if images.size < least:
        raise DataError(f"memorisation needs {least} held-out images or more, got {images.size}")
    return images

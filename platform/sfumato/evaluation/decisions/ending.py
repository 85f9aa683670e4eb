"""Whether a training ends before its last image, by what its evaluations have found.

A pure function of the figures so far, so that a run that is started again decides as before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sfumato.evaluation.config import EvaluateSettings
from sfumato.evaluation.decisions.collapse_limits import signs
from sfumato.evaluation.decisions.early_stopping import Point, should_stop


def may_end(settings: EvaluateSettings) -> bool:
    """Whether evaluations may end the training."""
    return settings.early_stop is not None or _acts(settings)


def deciding(settings: EvaluateSettings) -> dict[str, Any]:
    """The settings by which a training ends early, as JSON values; those of an early stop by themselves, as
    earlier versions recorded them."""
    early = None if settings.early_stop is None else settings.early_stop.model_dump(mode="json")
    if not _acts(settings):
        return early or {}
    assert settings.collapse is not None, "_acts says so"
    collapse = settings.collapse.model_dump(mode="json")
    return {"early_stop": early, "collapse": collapse, "on_collapse": settings.on_collapse}


def reason_to_end(
    points: Sequence[Point], figures: Mapping[int, Mapping[str, float]], settings: EvaluateSettings
) -> str | None:
    """Why training ends now, in a few words; None: it continues.

    `points` hold the figures that may decide, `figures` all of them by the number of images.
    """
    choice = settings.early_stop
    if choice is not None and should_stop(points, choice):
        return f"{choice.metric} was not better in {choice.patience} evaluations"
    if found := collapsed(figures, settings):
        return f"mode collapse ({'; '.join(found)})"
    return None


def collapsed(figures: Mapping[int, Mapping[str, float]], settings: EvaluateSettings) -> list[str]:
    """The signs on which `on_collapse` acts: those that complete the first `collapse.patience` evaluations in
    a row beyond a limit; empty if there are none, or it only warns."""
    limits, in_a_row = settings.collapse, 0
    if limits is None or not _acts(settings):
        return []
    for images in sorted(figures):
        found = signs(figures[images], limits) if images >= limits.start_images else []
        in_a_row = in_a_row + 1 if found else 0
        if in_a_row >= limits.patience:
            return found
    return []


def _acts(settings: EvaluateSettings) -> bool:
    return settings.collapse is not None and settings.on_collapse != "warn"

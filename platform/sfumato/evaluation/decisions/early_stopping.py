"""Decisions based on evaluations during training: which one is the best, and whether to continue.

They are pure functions of the figures so far, in the order of images. Which evaluation is the best therefore
never depends on how fast evaluations were; when training stops early does, since it continues meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from sfumato.core.config import Config


class BestSettings(Config):
    """The figure by which evaluations are compared."""

    metric: str = Field(description="Name of a figure as in the report, for example fd_classifier.")
    mode: Literal["auto", "min", "max"] = Field(
        "auto", description="Whether a low or a high figure is better; auto: as the metric defines."
    )


class EarlyStopSettings(BestSettings):
    """When to stop."""

    patience: int = Field(
        3, ge=1, description="Evaluations without a better figure after which training stops."
    )
    min_change: float = Field(0.0, ge=0, description="Least gain for a figure to count as better.")


@dataclass(frozen=True, slots=True)
class Point:
    """The figures of one evaluation, at a number of images."""

    images: int
    metrics: Mapping[str, float]
    higher_is_better: Mapping[str, bool]


def best_of(points: Sequence[Point], settings: BestSettings, min_change: float = 0.0) -> Point | None:
    """The best point; the earliest of equal ones, and a later one only if it gains more than `min_change`."""
    best: Point | None = None
    for point in sorted(points, key=lambda point: point.images):
        if settings.metric not in point.metrics:
            continue
        if best is None or _gain(best, point, settings) > min_change:
            best = point
    return best


def should_stop(points: Sequence[Point], settings: EarlyStopSettings) -> bool:
    """Whether `patience` evaluations in a row came after the best one."""
    best = best_of(points, settings, settings.min_change)
    return best is not None and sum(p.images > best.images for p in points) >= settings.patience


def _gain(old: Point, new: Point, settings: BestSettings) -> float:
    difference = new.metrics[settings.metric] - old.metrics[settings.metric]
    higher = settings.mode == "max" or (settings.mode == "auto" and new.higher_is_better[settings.metric])
    return difference if higher else -difference

"""Alarms for mode collapse: limits of figures that evaluations during training are held against."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from sfumato.core.config import Config

_LEAST = ("classes_covered", "pair_distance", "recall")
_MOST = ("class_kl", "discriminator_overfitting")
_OVERFITTING = 0.8


class CollapseLimits(Config):
    """What counts as collapse. Only figures among `evaluate.metrics` are looked at; null: never."""

    classes_covered: float | None = Field(0.9, ge=0, le=1, description="The least share of the classes.")
    class_kl: float | None = Field(0.5, ge=0, description="The highest divergence of the classes, in nats.")
    pair_distance: float | None = Field(
        0.5, ge=0, description="The least distance of two samples, 1 being that of real images."
    )
    discriminator_overfitting: float | None = Field(
        _OVERFITTING,
        exclude_if=lambda value: value == _OVERFITTING,
        description="The highest overfitting of a discriminator: 0 none, 1 where it takes unknown images for "
        "generated ones.",
    )
    recall: float | None = Field(0.05, ge=0, le=1, description="The least recall, of every kind of features.")
    start_images: int = Field(
        0,
        ge=0,
        description="Evaluations at fewer images are not looked at: an untrained model covers little.",
    )
    patience: int = Field(
        2,
        ge=1,
        description="Evaluations in a row beyond a limit after which `on_collapse` acts; each of them warns.",
    )

    @property
    def watched(self) -> list[str]:
        """The figures that have a limit."""
        return [name for name in (*_LEAST, *_MOST) if getattr(self, name) is not None]


def signs(metrics: Mapping[str, float], limits: CollapseLimits) -> list[str]:
    """The figures beyond their limits, each in a few words; empty: no collapse.

    Names in `metrics` are those of a report: with several kinds of features they end in `_<features>`.
    """
    found = []
    for name, value in metrics.items():
        figure = next((f for f in limits.watched if name == f or name.startswith(f"{f}_")), None)
        if figure is None:
            continue
        limit: float = getattr(limits, figure)
        least = figure in _LEAST
        if value < limit if least else value > limit:
            found.append(f"{name} {value:.3g}, {'under' if least else 'over'} {limit:g}")
    return found

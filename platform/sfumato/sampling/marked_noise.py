"""The mark in the noise that samples begin with, if the model's `provenance:` block asks for one."""

from __future__ import annotations

from typing import Any

from sfumato.core.config import Config
from sfumato.core.paths import BeginsInNoise
from sfumato.core.rng import Shape
from sfumato.errors import ConfigError
from sfumato.provenance.config import ProvenanceSettings
from sfumato.provenance.noises import NoiseMark

FIELD = "provenance.noise"


def mark_of(settings: ProvenanceSettings, family: Any, options: Config) -> NoiseMark | None:
    """The mark of samples drawn with these options; None without one.

    Raises ConfigError: a family without a path from noise to image, a sampler that adds noise on its way, or
    noise that is too small.
    """
    if settings.noise is None:
        return None
    if not isinstance(family, BeginsInNoise):
        raise ConfigError(
            f"{FIELD}: this family's images do not begin in noise that could be marked; leave it out"
        )
    try:
        shape = family.noise_shape(options)
    except ConfigError as error:
        raise ConfigError(*(f"{FIELD}: {problem}" for problem in error.problems)) from None
    mark: NoiseMark = settings.noise.build(shape)
    return mark


def shape_of(settings: ProvenanceSettings, family: Any, options: Config) -> Shape | None:
    """What the mark does to noise. Raises as `mark_of`."""
    mark = mark_of(settings, family, options)
    return None if mark is None else mark.applied


def problems(settings: ProvenanceSettings, family: Any, options: Config) -> list[str]:
    """Why samples cannot be marked, one line each."""
    try:
        mark_of(settings, family, options)
    except ConfigError as error:
        return list(error.problems)
    return []

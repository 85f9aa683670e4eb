"""R1, the zero-centred gradient penalty on real images (Mescheder et al. 2018, eq. 9): see `slopes.py`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sfumato.families.gan.slopes import SlopeConfig, SlopePenalty


class R1Config(SlopeConfig):
    """The zero-centred gradient penalty on real images (Mescheder, Geiger, Nowozin 2018)."""


class R1(SlopePenalty, R1Config):
    """(gamma / 2) R1."""

    kind: Literal["r1"] = Field("r1", description="Selects R1.")

    @classmethod
    def of(cls, settings: R1Config) -> R1:
        """The penalty of these settings."""
        return cls(**settings.model_dump())


COMPONENT = R1

"""What lies between encoder and decoder: which autoencoder it is.

A file here is a kind of latents: its configuration, a `LatentConfig`, and the network and family that it
builds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from sfumato.core.batch import DataSpec
from sfumato.core.components import Component, Components
from sfumato.core.family import Family
from sfumato.core.optimizer import OptimizerConfig
from sfumato.core.schedules import EmaSchedule
from sfumato.core.stored import StageSpec
from sfumato.families.vae.coders import NetworkConfig
from sfumato.families.vae.sharpening import Sharpening
from sfumato.text.config import TextConfig


@dataclass(frozen=True, slots=True)
class Parts:
    """The family's settings for every kind of latents; `classes` is 0 without conditioning."""

    network: NetworkConfig
    optimizer: OptimizerConfig
    ema: EmaSchedule
    classes: int = 0
    sharpening: Sharpening = field(default_factory=lambda: Sharpening(None, None, 0.0))
    text: TextConfig | None = None


class LatentConfig(Component, ABC):
    """Settings of a kind of latents; they build the family."""

    takes_texts: ClassVar[bool] = False
    """Whether texts steer it, which it then needs."""
    uses_network: ClassVar[bool] = True
    """Whether it is built on `model.network`, encoder and decoder; otherwise it has its own."""
    sharpens: ClassVar[bool] = False
    """Whether `model.adversarial` and `model.perceptual` have an effect."""
    has_prior: ClassVar[bool] = False
    """Whether there is a prior to draw images from; such a model may be conditioned on classes."""

    @abstractmethod
    def build(self, parts: Parts, data: DataSpec) -> Family:
        """Build the family for images of this kind."""

    def stage(self, network: NetworkConfig, data: DataSpec) -> StageSpec | None:
        """The network that other models may use as a first stage, if there is one; loads none."""
        return None

    def sample_problems(self, network: NetworkConfig, data: DataSpec, samples: int) -> list[str]:
        """Reasons why so many samples are too few, one line each."""
        return []

    def problems(self, network: NetworkConfig, data: DataSpec) -> list[str]:
        """Reasons why it cannot use this network and data, one line each, with the nearest fix."""
        return []


LATENTS: Components[LatentConfig] = Components(
    "sfumato.families.vae.latents", LatentConfig, default="gaussian"
)

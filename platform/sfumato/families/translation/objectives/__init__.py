"""What translators learn: which networks there are, what each minimises, and how a trained one is applied.

A file here is an objective. Its generator and its discriminator may each consist of several networks, which
one optimizer trains.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.components import Component, Components
from sfumato.core.conditions import Condition
from sfumato.core.config import Config
from sfumato.core.family import LossOut, Nets
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng
from sfumato.core.state import State
from sfumato.families.translation.generators import GeneratorConfig
from sfumato.families.translation.patches import PatchConfig


class SamplingConfig(Config):
    """How images are translated; `sfumato sample` may change any of it."""

    to: Literal["second", "first"] = Field(
        "second", description="The domain into which an unpaired model translates."
    )


class Objective(Component, ABC):
    """The losses of both phases, each with one value per row."""

    @abstractmethod
    def source(self, data: DataSpec) -> Condition:
        """The image that is translated."""

    @abstractmethod
    def build_generator(self, generator: GeneratorConfig, data: DataSpec) -> nn.Module:
        """All translators."""

    @abstractmethod
    def build_discriminator(self, patches: PatchConfig, data: DataSpec) -> nn.Module:
        """All discriminators."""

    @abstractmethod
    def discriminate(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        """The loss of the discriminators."""

    @abstractmethod
    def generate(self, nets: Nets, batch: Batch) -> LossOut:
        """The loss of the translators."""

    def first_state(self, data: DataSpec) -> State:
        """The state that the losses have at the start; none by default."""
        return {}

    def advance(self, state: State, sums: State, data: DataSpec) -> State:
        """The state after a step with these sums of the losses."""
        return state

    @abstractmethod
    def translated(self, generator: nn.Module, source_BCHW: Tensor, options: SamplingConfig) -> Tensor:
        """The images of a batch of sources."""

    @abstractmethod
    def problems(self, data: DataSpec, options: SamplingConfig) -> list[str]:
        """Why it cannot learn from this data, one line each."""


OBJECTIVES: Components[Objective] = Components(
    "sfumato.families.translation.objectives", Objective, default="pix2pix"
)


def mean_of_rows(x_B: Tensor) -> Tensor:
    """The mean over everything but the rows, [B]."""
    return x_B.flatten(1).mean(1)

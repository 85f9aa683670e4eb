"""The models: of pixels one after the other, or of a first stage's codes.

A file here is a model: its configuration, a `NetworkConfig`, and the family that it builds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

from pydantic import Field, model_validator

from sfumato.core.batch import DataSpec
from sfumato.core.components import Component, Components
from sfumato.core.family import Family
from sfumato.core.first_stage import OpenStage
from sfumato.core.optimizer import OptimizerConfig
from sfumato.core.pretrained import OpenModel
from sfumato.core.schedules import EmaSchedule
from sfumato.core.stored import StageSpec
from sfumato.families.autoregressive.sampling import SamplingConfig
from sfumato.text.config import TextConfig

DEFAULT_LABEL_DROPOUT = 0.1
PREFIX = "prefix"
"""The condition that holds images to be completed."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The family's settings for every model; `classes` is 0 without conditioning."""

    optimizer: OptimizerConfig
    ema: EmaSchedule
    classes: int = 0
    stage: OpenStage | None = None
    draft: OpenModel | None = None
    text: TextConfig | None = None


class NetworkConfig(Component, ABC):
    """The kind of model and its size; builds the family."""

    of_codes: ClassVar[bool] = False
    """Whether it models the codes of a first stage, which it then needs."""
    caches: ClassVar[bool] = False
    """Whether its codes are drawn with a `memory.Memory`, which `sampling.cache` chooses."""
    takes_texts: ClassVar[bool] = False
    """Whether texts may steer it."""
    of_latents: ClassVar[bool] = False
    """Whether it models the latents of a first stage, which it then needs."""

    of_scales: ClassVar[bool] = False
    """Whether these are sums of several scales."""

    def stage_problems(self, stage: StageSpec) -> list[str]:
        """Reasons why it cannot use this first stage, one line each."""
        return []

    @property
    def completes(self) -> bool:
        """Whether it can complete an image of which a part is known, in raster order."""
        return True

    @property
    def dropped(self) -> float | None:
        """The share of labels that training drops, which guidance needs; None for what cannot be guided."""
        return None

    def couples_rows(self) -> bool:
        """Whether its dropout draws for all rows of a micro-batch at once."""
        return False

    @abstractmethod
    def build(self, parts: Parts, data: DataSpec) -> Family:
        """Build the family for images of this kind."""

    def problems(self, data: DataSpec, sampling: SamplingConfig) -> list[str]:
        """Reasons why it cannot use this data and these options, one line each, with the nearest fix."""
        return []


class TransformerSize(NetworkConfig, ABC):
    """The size of a transformer over the codes or latents of a first stage."""

    head_multiple: ClassVar[int] = 1
    """Every head has a multiple of so many channels."""
    width: int = Field(128, ge=1, description="Channels of the residual stream.")
    layers: int = Field(4, ge=1, description="Blocks of attention and MLP.")
    heads: int = Field(4, ge=1, description="Attention heads, a divisor of the width.")

    @model_validator(mode="after")
    def _divides(self) -> Self:
        check_heads(self.width, self.heads, self.head_multiple)
        return self


class ClassConditional(TransformerSize, ABC):
    """A transformer that classes may steer."""

    label_dropout: float = Field(
        DEFAULT_LABEL_DROPOUT,
        ge=0,
        lt=1,
        description="Share of labels that training drops, which guidance needs.",
    )

    @property
    def dropped(self) -> float:
        """As set."""
        return self.label_dropout


NETWORKS: Components[NetworkConfig] = Components(
    "sfumato.families.autoregressive.networks", NetworkConfig, default="pixelcnn"
)


def check_heads(width: int, heads: int, multiple: int = 1) -> None:
    """Raise ValueError, with the nearest width, unless every head has a multiple of so many channels."""
    step = heads * multiple
    if width % step:
        near = max(1, round(width / step)) * step
        each = f" of {multiple} channels or a multiple" if multiple > 1 else ""
        raise ValueError(f"width: {width} is no multiple of heads={heads}{each}; the nearest is {near}")

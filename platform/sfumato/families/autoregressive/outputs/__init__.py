"""The distributions of a pixel given those before it.

A file here is a distribution: an `OutputConfig`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from sfumato.core.batch import DataSpec
from sfumato.core.components import Component, Components
from sfumato.core.family import EIGHT_BIT
from sfumato.core.rng import Rng
from sfumato.families.autoregressive.sampling import SamplingConfig

Predict = Callable[[Tensor], Tensor]
"""The parameters [B, size, H, W] of every pixel of an image [B, C, H, W] in [-1, 1] given those before it."""


class OutputConfig(Component, ABC):
    """A distribution, with its settings."""

    takes_temperature: ClassVar[bool] = True
    """Whether `sampling.temperature` and `sampling.top_k` have an effect."""

    @abstractmethod
    def size(self, channels: int) -> int:
        """The number of parameters per pixel."""

    @abstractmethod
    def nats(self, predict: Predict, image_BCHW: Tensor, rng: Rng) -> Tensor:
        """-log P of each image, [B]."""

    @abstractmethod
    def draw(
        self, parameters_NS11: Tensor, uniform_NU11: Tensor, channels: int, options: SamplingConfig
    ) -> Tensor:
        """A pixel [N, C, 1, 1] in [-1, 1] for each set of U = C + 1 uniform numbers."""

    @property
    def likelihood_of(self) -> str:
        """A description of the likelihood's variable."""
        return EIGHT_BIT

    def problems(self, data: DataSpec) -> list[str]:
        """What makes it impossible for this data, one line each."""
        return []


OUTPUTS: Components[OutputConfig] = Components(
    "sfumato.families.autoregressive.outputs", OutputConfig, default="logistic"
)

"""The invertible networks: lists of levels; each transforms its input and splits off half as latents.

A file here is a network: its configuration, a `NetworkConfig`, and the levels that it builds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from pydantic import Field

from sfumato.core.batch import DataSpec
from sfumato.core.components import Component, Components
from sfumato.families.flow.levels import Level, Shape


class NetworkConfig(Component, ABC):
    """Kind and size of a network, which it builds."""

    @property
    def dropped(self) -> float | None:
        """The share of labels that training drops, which guidance needs; None for what cannot be guided."""
        return None

    @abstractmethod
    def build_levels(self, shape: Shape, classes: int) -> list[Level]:
        """The levels for images of this shape, weights from torch's global generator.

        With labels dropped, `classes` is the number of the class that stands for none.
        """

    def problems(self, data: DataSpec) -> list[str]:
        """Reasons why it cannot take such images, one line each, with the nearest fix."""
        return []


class MultiScaleConfig(NetworkConfig):
    """A network whose levels halve the side."""

    least: ClassVar[int] = 1
    """The least side, in multiples of `factor`."""
    levels: int = Field(2, ge=1, description="Levels of the multi-scale architecture.")

    @property
    @abstractmethod
    def factor(self) -> int:
        """What the sides of an image must be a multiple of."""

    def problems(self, data: DataSpec) -> list[str]:
        """Sides that the levels cannot halve, one line each, with the nearest fix."""
        least = f" and at least {self.least * self.factor}" if self.least > 1 else ""
        return [
            f"model.network.levels: {self.levels} levels of {self.kind} need an image {name} "
            f"that is a multiple of {self.factor}{least}, got {side}; use {self._most(side)}"
            for name, side in (("height", data.height), ("width", data.width))
            if not self._fits(side)
        ]

    def _fits(self, side: int) -> bool:
        return side % self.factor == 0 and side // self.factor >= self.least

    def _most(self, side: int) -> str:
        """The nearest fix: fewer levels, or another side if even one level does not fit."""
        for levels in range(self.levels - 1, 0, -1):
            if self.model_copy(update={"levels": levels})._fits(side):
                return f"{levels} level{'s' if levels > 1 else ''}"
        return f"a side of {max(2, -(-side // self.factor)) * self.factor}"


NETWORKS: Components[NetworkConfig] = Components(
    "sfumato.families.flow.networks", NetworkConfig, default="glow"
)

"""Augmentations of what the discriminator sees, real and generated images alike, through which gradients
flow.

They keep a discriminator from memorising a small data set. A file here is an augmentation; it may have state
(`core.state`), which follows the discriminator.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from sfumato.core.batch import DataSpec
from sfumato.core.components import Component, Components
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng
from sfumato.core.state import State


class Augmentation(Component, ABC):
    """Random changes of images, one draw per row."""

    brief: ClassVar[bool] = True

    @abstractmethod
    def augment(self, x_BCHW: Tensor, rng: Rng, state: State) -> Tensor:
        """The images [B, C, H, W], changed."""

    def first(self) -> dict[str, Tensor]:
        """Its state at the start."""
        return {}

    def sums(self, real_B: Tensor) -> dict[str, Tensor]:
        """What the state is to know of the scores of real images."""
        return {}

    def advance(self, state: State, sums: State, progress: Progress) -> dict[str, Tensor]:
        """Its state after a step."""
        return {name: state[name] for name in self.first()}

    def metrics(self, state: State) -> dict[str, Tensor]:
        """Scalars to record."""
        return {}

    def amount_problems(self, batch: int) -> list[str]:
        """Why it cannot work with global batches of so many rows, one line each."""
        return []

    def problems(self, data: DataSpec) -> list[str]:
        """Why it cannot change such images, one line each."""
        return []


AUGMENTATIONS: Components[Augmentation] = Components("sfumato.families.gan.augmentations", Augmentation)

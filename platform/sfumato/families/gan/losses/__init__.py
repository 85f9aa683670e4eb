"""The games that the two networks play, with one loss per row.

A file here is a game, given the scores s = D(x) of real and f = D(G(z)) of generated images. Settings, if
it has any, are given with its name: `loss: {kind: name, ...}`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from sfumato.core.components import Component, Components


class Loss(Component, ABC):
    """Both players' losses of scores [B], each [B]."""

    brief: ClassVar[bool] = True
    sees_bias: ClassVar[bool] = True
    """Whether a constant added to all scores changes the discriminator's loss."""
    needs_bound: ClassVar[bool] = False
    """Whether it is meaningful only for a discriminator of bounded slope."""
    paired: ClassVar[bool] = False
    """Whether the generator's loss compares each generated image with a real one (`generator_against`)."""

    @abstractmethod
    def discriminator(self, s_B: Tensor, f_B: Tensor) -> Tensor:
        """L_D."""

    @abstractmethod
    def generator(self, f_B: Tensor) -> Tensor:
        """L_G."""

    def generator_against(self, s_B: Tensor, f_B: Tensor) -> Tensor:
        """L_G of a paired game."""
        return self.generator(f_B)


LOSSES: Components[Loss] = Components("sfumato.families.gan.losses", Loss, default="nonsaturating")

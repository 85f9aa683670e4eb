"""How much the loss counts at each noise level of a model with discrete ones. A file here is a weighting."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from sfumato.core.components import Component, Components


class Weighting(Component, ABC):
    """A factor on the squared error of the network's target."""

    brief: ClassVar[bool] = True

    @abstractmethod
    def weight(self, snr_T: Tensor, own_T: Tensor) -> Tensor:
        """The factor at signal-to-noise ratios abar / (1 - abar), [T].

        The squared error of the target is `own_T` times that of the image that it implies: the ratio itself
        if the target is the noise, and one more if it is v (Salimans & Ho 2022, sec. 4).
        """


WEIGHTINGS: Components[Weighting] = Components(
    "sfumato.families.diffusion.weightings", Weighting, default="plain"
)

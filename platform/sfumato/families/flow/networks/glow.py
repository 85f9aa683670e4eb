"""Glow (Kingma & Dhariwal 2018): steps of actnorm, 1x1 convolution and affine coupling."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field
from torch import Tensor

from sfumato.families.flow.bijection import ActNorm, Bijection, InvertibleConv
from sfumato.families.flow.couplings import GlowCoupling
from sfumato.families.flow.levels import Level, Shape, Squeeze, squeezed
from sfumato.families.flow.networks import MultiScaleConfig


class GlowConfig(MultiScaleConfig):
    """Glow (Kingma & Dhariwal 2018): a level squeezes, runs its steps, splits off half the channels."""

    kind: Literal["glow"] = Field("glow", description="Selects Glow.")
    levels: int = Field(2, ge=1, description="L: the number of levels; each halves the side.")
    steps: int = Field(
        8, ge=1, description="K: steps of a level (actnorm, 1x1 convolution, affine coupling)."
    )
    channels: int = Field(64, ge=1, description="Hidden channels of the coupling networks.")

    @property
    def factor(self) -> int:
        """What the sides of an image must be a multiple of."""
        return 1 << self.levels

    @classmethod
    def tiny(cls) -> Self:
        """Two levels of one step."""
        return cls(levels=2, steps=1, channels=8)

    def build_levels(self, shape: Shape, classes: int) -> list[Level]:
        """Each squeezes, runs its steps and splits."""
        levels: list[Level] = []
        for index in range(self.levels):
            shape = squeezed(shape)
            steps: list[Bijection] = [GlowStep(shape[0], self.channels, classes) for _ in range(self.steps)]
            last = index == self.levels - 1
            levels.append(Level([Squeeze(), *steps], shape, classes, last=last, learned=True))
            shape = levels[-1].out_shape
        return levels


class GlowStep(Bijection):
    """Actnorm, 1x1 convolution, affine coupling (Kingma & Dhariwal 2018, fig. 2a)."""

    def __init__(self, channels: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.norm = ActNorm(channels)
        self.conv = InvertibleConv(channels)
        self.coupling = GlowCoupling(channels, hidden, classes)

    def forward(self, x_BCHW: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
        x_BCHW, first_B = self.norm(x_BCHW)
        x_BCHW, second_B = self.conv(x_BCHW)
        x_BCHW, third_B = self.coupling(x_BCHW, label_B)
        return x_BCHW, first_B + second_B + third_B

    def inverse(self, y_BCHW: Tensor, label_B: Tensor) -> Tensor:
        return self.norm.inverse(self.conv.inverse(self.coupling.inverse(y_BCHW, label_B)))


COMPONENT = GlowConfig

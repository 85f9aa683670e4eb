"""Real NVP (Dinh, Sohl-Dickstein, Bengio 2017), with actnorm instead of batch normalisation."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field
from torch import Tensor

from sfumato.families.flow.bijection import ActNorm, Bijection
from sfumato.families.flow.couplings import MaskedCoupling, checkerboard, half_channels
from sfumato.families.flow.levels import Level, Shape, Squeeze, squeezed
from sfumato.families.flow.networks import MultiScaleConfig

LAST_COUPLINGS = 4


class RealNvpConfig(MultiScaleConfig):
    """Real NVP (Dinh, Sohl-Dickstein, Bengio 2017): alternating checkerboard and channel-wise couplings."""

    least: ClassVar[int] = 2  # a checkerboard has two colours
    kind: Literal["realnvp"] = Field("realnvp", description="Selects Real NVP.")
    levels: int = Field(2, ge=1, description="Levels; every level but the last halves the side.")
    channels: int = Field(32, ge=1, description="Hidden channels of the coupling networks.")
    blocks: int = Field(2, ge=0, description="Residual blocks of a coupling network.")

    @property
    def factor(self) -> int:
        """What the sides of an image must be a multiple of; the last level needs 2x2 pixels."""
        return 1 << (self.levels - 1)

    @classmethod
    def tiny(cls) -> Self:
        """Two levels with networks of one block."""
        return cls(levels=2, channels=8, blocks=1)

    def build_levels(self, shape: Shape, classes: int) -> list[Level]:
        """Couplings by turns, then the split."""
        levels: list[Level] = []
        for index in range(self.levels):
            last = index == self.levels - 1
            steps, shape = _steps(self, shape, classes, last=last)
            levels.append(Level(steps, shape, classes, last=last, learned=False))
            shape = levels[-1].out_shape
        return levels


class MaskedStep(Bijection):
    """A masked coupling, then actnorm instead of Real NVP's batch normalisation (sec. 3.7)."""

    def __init__(self, mask_CHW: Tensor, config: RealNvpConfig, classes: int) -> None:
        super().__init__()
        self.coupling = MaskedCoupling(mask_CHW, config.channels, config.blocks, classes)
        self.norm = ActNorm(len(mask_CHW))

    def forward(self, x_BCHW: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
        x_BCHW, first_B = self.coupling(x_BCHW, label_B)
        x_BCHW, second_B = self.norm(x_BCHW)
        return x_BCHW, first_B + second_B

    def inverse(self, y_BCHW: Tensor, label_B: Tensor) -> Tensor:
        return self.coupling.inverse(self.norm.inverse(y_BCHW), label_B)


def _steps(config: RealNvpConfig, shape: Shape, classes: int, *, last: bool) -> tuple[list[Bijection], Shape]:
    """Three checkerboard couplings, a squeeze and three channel-wise ones; on the last level only four
    checkerboard couplings."""
    count = LAST_COUPLINGS if last else 3
    steps: list[Bijection] = [
        MaskedStep(checkerboard(shape, turn % 2), config, classes) for turn in range(count)
    ]
    if last:
        return steps, shape
    shape = squeezed(shape)
    steps.append(Squeeze())
    steps += [MaskedStep(half_channels(shape, turn % 2), config, classes) for turn in range(3)]
    return steps, shape


COMPONENT = RealNvpConfig

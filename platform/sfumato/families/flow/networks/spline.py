"""Neural spline flow (Durkan, Bekasov, Murray, Papamakarios 2019): Glow with rational-quadratic couplings."""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from sfumato.families.flow import rational_quadratic
from sfumato.families.flow.bijection import ActNorm, Bijection, InvertibleConv, sum_pixels
from sfumato.families.flow.couplings import ResidualNet
from sfumato.families.flow.levels import Level, Shape, Squeeze, squeezed
from sfumato.families.flow.networks import MultiScaleConfig


class SplineConfig(MultiScaleConfig):
    """Neural spline flow (Durkan et al. 2019, RQ-NSF (C)): splines in place of Glow's affine couplings."""

    kind: Literal["spline"] = Field("spline", description="Selects the neural spline flow.")
    levels: int = Field(2, ge=1, description="Levels; each halves the side.")
    steps: int = Field(4, ge=1, description="Steps of a level (actnorm, 1x1 convolution, spline coupling).")
    channels: int = Field(48, ge=1, description="Hidden channels of the coupling networks.")
    blocks: int = Field(2, ge=0, description="Residual blocks of a coupling network.")
    bins: int = Field(8, ge=2, le=500, description="K: bins of every spline.")
    bound: float = Field(
        3.0, gt=0, description="B: a spline bends the values in [-B, B] and leaves the others as they are."
    )

    @property
    def factor(self) -> int:
        """What the sides of an image must be a multiple of."""
        return 1 << self.levels

    @classmethod
    def tiny(cls) -> Self:
        """One level of two steps."""
        return cls(levels=1, steps=2, channels=8, blocks=1, bins=4)

    def build_levels(self, shape: Shape, classes: int) -> list[Level]:
        """Each squeezes, runs its steps and splits."""
        levels: list[Level] = []
        for index in range(self.levels):
            shape = squeezed(shape)
            steps: list[Bijection] = [SplineStep(shape[0], self, classes) for _ in range(self.steps)]
            last = index == self.levels - 1
            levels.append(Level([Squeeze(), *steps], shape, classes, last=last, learned=True))
            shape = levels[-1].out_shape
        return levels


class SplineCoupling(Bijection):
    """The first half of the channels gives each value of the second half its own spline (ibid., alg. 1)."""

    def __init__(self, channels: int, config: SplineConfig, classes: int) -> None:
        super().__init__()
        self._kept, self._bound = channels // 2, config.bound
        self._each = rational_quadratic.parameters(config.bins)
        bent = channels - self._kept
        self.net = ResidualNet(self._kept, bent * self._each, config.channels, config.blocks, classes)

    def forward(self, x_BCHW: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
        a_BCHW, b_BCHW = x_BCHW[:, : self._kept], x_BCHW[:, self._kept :]
        y_BCHW, log_slope_BCHW = rational_quadratic.forward(b_BCHW, self._raw(a_BCHW, label_B), self._bound)
        return torch.cat([a_BCHW, y_BCHW], 1), sum_pixels(log_slope_BCHW)

    def inverse(self, y_BCHW: Tensor, label_B: Tensor) -> Tensor:
        a_BCHW, b_BCHW = y_BCHW[:, : self._kept], y_BCHW[:, self._kept :]
        x_BCHW = rational_quadratic.inverse(b_BCHW, self._raw(a_BCHW, label_B), self._bound)
        return torch.cat([a_BCHW, x_BCHW], 1)

    def _raw(self, a_BCHW: Tensor, label_B: Tensor) -> Tensor:
        """The numbers of every value's spline, on the last axis."""
        raw_BCHW: Tensor = self.net(a_BCHW, label_B)
        b, _, h, w = raw_BCHW.shape
        return raw_BCHW.view(b, -1, self._each, h, w).movedim(2, -1)


class SplineStep(Bijection):
    """Actnorm, 1x1 convolution, spline coupling."""

    def __init__(self, channels: int, config: SplineConfig, classes: int) -> None:
        super().__init__()
        self.norm = ActNorm(channels)
        self.conv = InvertibleConv(channels)
        self.coupling = SplineCoupling(channels, config, classes)

    def forward(self, x_BCHW: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
        x_BCHW, first_B = self.norm(x_BCHW)
        x_BCHW, second_B = self.conv(x_BCHW)
        x_BCHW, third_B = self.coupling(x_BCHW, label_B)
        return x_BCHW, first_B + second_B + third_B

    def inverse(self, y_BCHW: Tensor, label_B: Tensor) -> Tensor:
        return self.norm.inverse(self.conv.inverse(self.coupling.inverse(y_BCHW, label_B)))


COMPONENT = SplineConfig

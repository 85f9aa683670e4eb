"""Flow++ (Ho, Chen, Srinivas, Duan, Abbeel 2019): couplings by mixtures of logistics."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from sfumato.families.flow.bijection import ActNorm, Bijection, InvertibleConv, sum_pixels
from sfumato.families.flow.couplings import checkerboard, half_channels
from sfumato.families.flow.gated_net import GatedNet
from sfumato.families.flow.levels import Level, Shape, Squeeze, squeezed
from sfumato.families.flow.mixture_cdf import Logistics
from sfumato.families.flow.networks import MultiScaleConfig

CHECKERBOARDS, HALVES, LAST_CHECKERBOARDS = 4, 2, 3
"""Couplings by colour and by half of the channels of a level, and those of the last level (ibid., app. A)."""


class FlowppConfig(MultiScaleConfig):
    """Flow++ (Ho et al. 2019): no value is split off, each coupling is a mixture's distribution function."""

    least: ClassVar[int] = 2  # a checkerboard has two colours
    kind: Literal["flowpp"] = Field("flowpp", description="Selects Flow++.")
    levels: int = Field(2, ge=1, description="Levels; every level but the last halves the side.")
    channels: int = Field(32, ge=1, description="Hidden channels of the coupling networks.")
    blocks: int = Field(2, ge=1, description="Blocks of a coupling network.")
    heads: int = Field(4, ge=0, description="Attention heads of a block, a divisor of channels; 0: none.")
    components: int = Field(8, ge=1, description="K: logistics of a mixture.")

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.heads and self.channels % self.heads:
            near = max(1, round(self.channels / self.heads)) * self.heads
            raise ValueError(
                f"channels: {self.channels} is no multiple of heads={self.heads}; the nearest is {near}"
            )
        return self

    @property
    def factor(self) -> int:
        """What the sides of an image must be a multiple of."""
        return 1 << (self.levels - 1)

    @classmethod
    def tiny(cls) -> Self:
        """One level of three couplings."""
        return cls(levels=1, channels=4, blocks=1, heads=1, components=2)

    def build_levels(self, shape: Shape, classes: int) -> list[Level]:
        """One level without a split, whose steps squeeze in between."""
        steps: list[Bijection] = []
        for index in range(self.levels):
            last = index == self.levels - 1
            colours = LAST_CHECKERBOARDS if last else CHECKERBOARDS
            steps += [MixtureStep(checkerboard(shape, turn % 2), self, classes) for turn in range(colours)]
            if not last:
                shape = squeezed(shape)
                steps.append(Squeeze())
                steps += [
                    MixtureStep(half_channels(shape, turn % 2), self, classes) for turn in range(HALVES)
                ]
        return [Level(steps, shape, classes, last=True, learned=False)]


class MixtureCoupling(Bijection):
    """The values under the mask give each of the others its own mixture of logistics."""

    mask: Tensor

    def __init__(self, mask_CHW: Tensor, config: FlowppConfig, classes: int) -> None:
        super().__init__()
        channels, height, width = mask_CHW.shape
        self.register_buffer("mask", mask_CHW, persistent=False)
        self._each = 2 + 3 * config.components
        self.net = GatedNet(
            channels,
            channels * self._each,
            config.channels,
            config.blocks,
            classes,
            heads=config.heads,
            places=height * width,
        )
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x_BCHW: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
        a_BCHW, b_BCHW, mixture = self._given(x_BCHW, label_B)
        logit_BCHW, log_slope_BCHW = mixture.logit_and_slope(x_BCHW)
        y_BCHW = torch.where(self.mask > 0, x_BCHW, logit_BCHW * a_BCHW.exp() + b_BCHW)
        return y_BCHW, sum_pixels((log_slope_BCHW + a_BCHW) * (1 - self.mask))

    def inverse(self, y_BCHW: Tensor, label_B: Tensor) -> Tensor:
        a_BCHW, b_BCHW, mixture = self._given(y_BCHW, label_B)
        x_BCHW = mixture.invert((y_BCHW - b_BCHW) * (-a_BCHW).exp())
        return torch.where(self.mask > 0, y_BCHW, x_BCHW)

    def _given(self, x_BCHW: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor, Logistics]:
        raw = self.net(x_BCHW * self.mask, label_B).unflatten(1, (-1, self._each)).movedim(2, -1)
        log_scale_BCHW = self.gain[:, None, None] * raw[..., 0].tanh()
        return log_scale_BCHW, raw[..., 1], Logistics.of(raw[..., 2:])


class MixtureStep(Bijection):
    """Actnorm, 1x1 convolution, coupling."""

    def __init__(self, mask_CHW: Tensor, config: FlowppConfig, classes: int) -> None:
        super().__init__()
        self.norm = ActNorm(len(mask_CHW))
        self.conv = InvertibleConv(len(mask_CHW))
        self.coupling = MixtureCoupling(mask_CHW, config, classes)

    def forward(self, x_BCHW: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
        x_BCHW, first_B = self.norm(x_BCHW)
        x_BCHW, second_B = self.conv(x_BCHW)
        x_BCHW, third_B = self.coupling(x_BCHW, label_B)
        return x_BCHW, first_B + second_B + third_B

    def inverse(self, y_BCHW: Tensor, label_B: Tensor) -> Tensor:
        return self.norm.inverse(self.conv.inverse(self.coupling.inverse(y_BCHW, label_B)))


COMPONENT = FlowppConfig

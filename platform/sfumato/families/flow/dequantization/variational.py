"""Noise of a learned distribution given the image (Flow++; Ho et al. 2019, sec. 3.1)."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.families.flow.bijection import sum_pixels
from sfumato.families.flow.couplings import MaskedCoupling, checkerboard
from sfumato.families.flow.dequantization import LEVELS, Dequantization, DequantizerNet
from sfumato.families.flow.levels import Shape, normal_log_density

PROBIT = 1.702
"""sigmoid(1.702 z) is the normal distribution function to 0.01, so the noise starts as nearly uniform."""


class VariationalConfig(Dequantization):
    """The noise has a learned distribution given the image (Flow++; Ho et al. 2019, sec. 3.1)."""

    normal_noise: ClassVar[bool] = True
    kind: Literal["variational"] = Field("variational", description="Selects variational dequantisation.")
    steps: int = Field(4, ge=1, description="Checkerboard couplings of the noise's own flow.")
    channels: int = Field(32, ge=1, description="Hidden channels of its networks.")

    @classmethod
    def tiny(cls) -> Self:
        """Two couplings."""
        return cls(steps=2, channels=8)

    def build(self, shape: Shape) -> Variational:
        """The noise's own flow."""
        return Variational(self, shape)


class Variational(DequantizerNet):
    """u = sigmoid(1.702 f(eps; k)) with eps normal and f a flow of checkerboard couplings given the image."""

    def __init__(self, config: VariationalConfig, shape: Shape) -> None:
        super().__init__()
        self.context = nn.Sequential(
            nn.Conv2d(shape[0], config.channels, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(config.channels, config.channels, 3, 1, 1),
            nn.ReLU(),
        )
        self.steps = nn.ModuleList(
            MaskedCoupling(checkerboard(shape, turn % 2), config.channels, 1, 0, config.channels)
            for turn in range(config.steps)
        )

    def forward(self, k_BCHW: Tensor, noise_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """u [B, C, H, W] and log q(u | k) [B], from standard normal noise."""
        context_BCHW = self.context(k_BCHW / (LEVELS / 2) - 1)
        label_B = torch.zeros(len(k_BCHW), dtype=torch.int64, device=k_BCHW.device)
        log_q_B = normal_log_density(noise_BCHW)
        v_BCHW = noise_BCHW
        for step in self.steps:
            v_BCHW, log_det_B = step(v_BCHW, label_B, context_BCHW)
            log_q_B = log_q_B - log_det_B
        v_BCHW = PROBIT * v_BCHW
        slope_BCHW = F.logsigmoid(v_BCHW) + F.logsigmoid(-v_BCHW) + math.log(PROBIT)
        return v_BCHW.sigmoid(), log_q_B - sum_pixels(slope_BCHW)


COMPONENT = VariationalConfig

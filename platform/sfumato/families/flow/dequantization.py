"""From 256 levels to a continuous value: y = k + u, with k the image in 0..255 and u in [0, 1).

A density p(y) bounds the probability of the levels: log P(k) >= E_u [log p(k + u) - log q(u | k)]
(Theis et al. 2016, eq. 5; Ho et al. 2019, eq. 11). With uniform noise log q is zero.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.families.flow.bijection import sum_pixels
from sfumato.families.flow.config import UniformConfig, VariationalConfig
from sfumato.families.flow.couplings import MaskedCoupling, checkerboard
from sfumato.families.flow.levels import Shape, normal_log_density

LEVELS = 256
PROBIT = 1.702
"""sigmoid(1.702 z) is the normal distribution function to 0.01, so the noise starts as nearly uniform."""


def to_levels(image_BCHW: Tensor) -> Tensor:
    """Images in [-1, 1] to whole numbers 0..255, float32."""
    return ((image_BCHW.float() + 1) * 127.5).round().clamp(0, LEVELS - 1)


def from_unit(x_BCHW: Tensor) -> Tensor:
    """A continuous value of [0, 1) to the image in [-1, 1] of the level it lies in; outside, the nearest.

    NaN stays NaN: a flow whose inverse broke down must not pass for one that draws grey.
    """
    return (x_BCHW * LEVELS).floor().clamp(0, LEVELS - 1) / 127.5 - 1


class Uniform(nn.Module):
    """u uniform in [0, 1)."""

    def forward(self, k_BCHW: Tensor, noise_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """u [B, C, H, W] and log q(u | k) [B], from uniform noise."""
        return noise_BCHW, noise_BCHW.new_zeros(len(noise_BCHW))


class Variational(nn.Module):
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


def build_dequantizer(config: UniformConfig | VariationalConfig, shape: Shape) -> Uniform | Variational:
    """The noise that a configuration means."""
    return Variational(config, shape) if isinstance(config, VariationalConfig) else Uniform()

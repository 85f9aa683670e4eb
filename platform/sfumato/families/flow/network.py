"""The whole network: dequantisation, the map to an unbounded value, and the levels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.families.flow.bijection import Decoding, sum_pixels
from sfumato.families.flow.dequantization import LEVELS, DequantizerNet
from sfumato.families.flow.levels import Level, Shape


class FlowNetwork(nn.Module):
    """log P of images under the flow, and images of normal noise."""

    def __init__(
        self,
        levels: Sequence[Level],
        dequantizer: DequantizerNet,
        shape: Shape,
        logit_alpha: float | None,
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList(levels)
        self.dequantizer = dequantizer
        self.shape = shape
        self.logit_alpha = logit_alpha

    @property
    def dims(self) -> int:
        """Values of an image."""
        return math.prod(self.shape)

    def forward(self, k_BCHW: Tensor, noise_BCHW: Tensor | None, label_B: Tensor) -> Tensor:
        """log P(k) in nats [B], bounded from below by one draw of the dequantisation's noise.

        `k_BCHW` holds whole numbers 0..255; `noise_BCHW` is what the dequantizer takes, uniform or normal.
        Without noise `k_BCHW` is continuous and the result log p of it, exact.
        """
        if noise_BCHW is None:
            return self.log_density(k_BCHW, label_B)
        u_BCHW, log_q_B = self.dequantizer(k_BCHW, noise_BCHW)
        density_B = self.log_density((k_BCHW + u_BCHW) / LEVELS, label_B)
        log_p_B: Tensor = density_B - self.dims * math.log(LEVELS) - log_q_B
        return log_p_B

    def log_density(self, x_BCHW: Tensor, label_B: Tensor) -> Tensor:
        """log p(x) [B] of continuous images in [0, 1), exact."""
        x_BCHW, density_B = self._unbounded(x_BCHW)
        for level in self.levels:
            x_BCHW, added_B = level(x_BCHW, label_B)
            density_B = density_B + added_B
        return density_B

    def encode(self, x_BCHW: Tensor, label_B: Tensor) -> Tensor:
        """The noise [B, dims] from which `decode` makes continuous images in [0, 1)."""
        x_BCHW, parts = self._unbounded(x_BCHW)[0], []
        for level in self.levels:
            assert isinstance(level, Level)
            x_BCHW, noise_BCHW = level.encode(x_BCHW, label_B)
            parts.append(noise_BCHW.flatten(1))
        return torch.cat(parts, dim=1)

    def decode(self, noise_BD: Tensor, label_B: Tensor, decoding: Decoding | None = None) -> Tensor:
        """x [B, C, H, W] from standard normal noise [B, dims]; outside [0, 1) where the flow leaves it."""
        levels = [level for level in self.levels if isinstance(level, Level)]
        parts = torch.split(noise_BD, [math.prod(level.latent_shape) for level in levels], 1)
        x_BCHW = noise_BD.new_zeros(len(noise_BD), *levels[-1].out_shape)
        for level, part in zip(reversed(levels), reversed(parts), strict=True):
            x_BCHW = level.inverse(x_BCHW, part.reshape(-1, *level.latent_shape), label_B, decoding)
        if self.logit_alpha is None:
            return x_BCHW + 0.5
        return (x_BCHW.sigmoid() - self.logit_alpha) / (1 - 2 * self.logit_alpha)

    def _unbounded(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """x - 1/2, or logit(alpha + (1 - 2 alpha) x), with the log-determinant [B]."""
        if self.logit_alpha is None:
            return x_BCHW - 0.5, torch.zeros(len(x_BCHW), device=x_BCHW.device)
        inside = 1 - 2 * self.logit_alpha
        y_BCHW = torch.logit(self.logit_alpha + inside * x_BCHW)
        slope_BCHW = math.log(inside) - F.logsigmoid(y_BCHW) - F.logsigmoid(-y_BCHW)
        return y_BCHW, sum_pixels(slope_BCHW)

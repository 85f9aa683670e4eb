"""A small diffusion model of one continuous token given a vector (MAR; Li et al. 2024, sec. 3.2, app. A).

The network sees a noisy token x_t, t and the vector z, and predicts the noise:

    x_t = sqrt(a_t) x + sqrt(1 - a_t) eps,    loss = |eps - eps(x_t, t, z)|^2

with the cosine schedule a (Nichol & Dhariwal 2021).

Drawing goes back over evenly spaced t, with the posterior of x_s given x_t and the predicted x.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STEPS = 1_000
LARGEST_BETA = 0.999
Predict = Callable[[Tensor, Tensor], Tensor]
"""The noise in tokens [M, C] at times [M]."""


def alphas_bar() -> Tensor:
    """a_t for t = 0 .. 999, float64."""
    place = torch.arange(STEPS + 1, dtype=torch.float64) / STEPS
    cosine = torch.cos((place + 0.008) / 1.008 * math.pi / 2).square()
    return (1 - (1 - cosine[1:] / cosine[:-1]).clamp(max=LARGEST_BETA)).cumprod(0)


class DiffusionHead(nn.Module):
    """Predicts the noise of tokens [M, C] by residual blocks that t and z modulate."""

    def __init__(self, channels: int, given: int, width: int, blocks: int) -> None:
        super().__init__()
        self._width = width
        self.into = nn.Linear(channels, width)
        self.given = nn.Linear(given, width)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(_Block(width) for _ in range(blocks))
        self.shift = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, channels)

    def forward(self, x_MC: Tensor, t_M: Tensor, z_MD: Tensor) -> Tensor:
        by = F.silu(self.time(waves(t_M, self._width).to(z_MD.dtype)) + self.given(z_MD))
        h = self.into(x_MC)
        for block in self.blocks:
            h = block(h, by)
        shift, scale = self.shift(by).chunk(2, dim=1)
        out: Tensor = self.out(F.layer_norm(h, h.shape[-1:]) * (1 + scale) + shift)
        return out.float()


class _Block(nn.Module):
    """A gated MLP, its input shifted and scaled (adaLN)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.modulation = nn.Linear(width, 3 * width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, h: Tensor, by: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(by).chunk(3, dim=1)
        out: Tensor = h + gate * self.mlp(self.norm(h) * (1 + scale) + shift)
        return out


def waves(t_M: Tensor, width: int) -> Tensor:
    """Sines and cosines of times at geometric frequencies, [M, width]."""
    half = (width + 1) // 2
    speed = torch.exp(-math.log(10_000.0) * torch.arange(half, device=t_M.device) / half)
    angle = t_M.float()[:, None] * speed
    return torch.cat([angle.cos(), angle.sin()], dim=1)[:, :width]


def noisy(x: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """x_t of tokens [..., C] at times [...]."""
    a = alphas_bar().to(x.device)[t][..., None].float()
    return a.sqrt() * x + (1 - a).sqrt() * eps


def denoised(predict: Predict, noise_SMC: Tensor, temperature: float) -> Tensor:
    """Tokens [M, C] from S sets of standard normal noise: the start's, and those of S - 1 steps back."""
    steps = len(noise_SMC) - 1
    alpha = alphas_bar()
    times = torch.linspace(STEPS - 1, 0, steps).round().long().tolist()
    x = noise_SMC[0]
    for number, t in enumerate(times):
        a = alpha[t].item()
        before = alpha[times[number + 1]].item() if number < steps - 1 else 1.0
        eps = predict(x, torch.full((len(x),), t, device=x.device))
        clean = (x - math.sqrt(1 - a) * eps) / math.sqrt(a)
        beta = 1 - a / before
        mean = math.sqrt(before) * beta / (1 - a) * clean
        mean = mean + math.sqrt(a / before) * (1 - before) / (1 - a) * x
        spread = math.sqrt(beta * (1 - before) / (1 - a))
        x = mean + temperature * spread * noise_SMC[number + 1]
    return x

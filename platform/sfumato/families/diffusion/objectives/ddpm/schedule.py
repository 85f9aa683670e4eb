"""The forward process: noise schedules, and the algebra between image, noise and v.

With abar_t the product of (1 - beta_s) for s up to t,

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps        Ho et al. 2020, eq. 4
    v_t = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0        Salimans & Ho 2022, sec. 4

Timesteps count from 0 to T - 1, as in diffusers; the papers' t is one more.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from sfumato.families.diffusion.samplers import MAX_BETA, linear_range

COSINE_OFFSET = 0.008


def linear_betas(timesteps: int) -> Tensor:
    """Betas on a straight line, [T] float64."""
    first, last = linear_range(timesteps)
    return torch.linspace(first, last, timesteps, dtype=torch.float64)


def cosine_betas(timesteps: int) -> Tensor:
    """Betas of abar(t) = cos^2((t/T + s) / (1 + s) * pi/2), [T] float64 (Nichol & Dhariwal 2021, eq. 17)."""
    t = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
    abar = torch.cos((t + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2) ** 2
    return (1 - abar[1:] / abar[:-1]).clamp(max=MAX_BETA)


class NoiseSchedule:
    """Signal and noise of every timestep, and the conversions that training needs."""

    def __init__(self, kind: Literal["linear", "cosine"], timesteps: int) -> None:
        self.timesteps = timesteps
        self.betas = linear_betas(timesteps) if kind == "linear" else cosine_betas(timesteps)
        self.alpha_bar = torch.cumprod(1 - self.betas, dim=0)
        self._on_device: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def coefficients(self, t_B: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t), each [B, 1, 1, 1] float32."""
        if t_B.device not in self._on_device:
            signal, noise = self.alpha_bar.sqrt().float(), (1 - self.alpha_bar).sqrt().float()
            self._on_device[t_B.device] = (signal.to(t_B.device), noise.to(t_B.device))
        signal_T, noise_T = self._on_device[t_B.device]
        return signal_T[t_B].view(-1, 1, 1, 1), noise_T[t_B].view(-1, 1, 1, 1)

    def add_noise(self, x0_BCHW: Tensor, eps_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """x_t of the forward process."""
        signal, noise = self.coefficients(t_B)
        return signal * x0_BCHW + noise * eps_BCHW

    def velocity(self, x0_BCHW: Tensor, eps_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """v_t, the target of v prediction."""
        signal, noise = self.coefficients(t_B)
        return signal * eps_BCHW - noise * x0_BCHW

    def x0_from_epsilon(self, xt_BCHW: Tensor, eps_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """The image that x_t holds, if eps is its noise."""
        signal, noise = self.coefficients(t_B)
        return (xt_BCHW - noise * eps_BCHW) / signal

    def x0_from_velocity(self, xt_BCHW: Tensor, v_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """The image that x_t holds, if v is its velocity."""
        signal, noise = self.coefficients(t_B)
        return signal * xt_BCHW - noise * v_BCHW

    def epsilon_from_velocity(self, xt_BCHW: Tensor, v_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """The noise that x_t holds, if v is its velocity."""
        signal, noise = self.coefficients(t_B)
        return noise * xt_BCHW + signal * v_BCHW

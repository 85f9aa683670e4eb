"""The forward process: noise schedules, and the algebra between image, noise and v.

With abar_t the product of (1 - beta_s) for s up to t,

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps        Ho et al. 2020, eq. 4
    v_t = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0        Salimans & Ho 2022, sec. 4

Timesteps count from 0 to T - 1, as in diffusers; the papers' t is one more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.families.diffusion.samplers import MAX_BETA, Schedule, linear_range

COSINE_OFFSET = 0.008


def linear_betas(timesteps: int, ends: tuple[float, float] | None = None) -> Tensor:
    """Betas on a straight line, [T] float64, between `ends` or those of `linear_range`."""
    first, last = ends or linear_range(timesteps)
    return torch.linspace(first, last, timesteps, dtype=torch.float64)


def scaled_linear_betas(timesteps: int, ends: tuple[float, float] | None = None) -> Tensor:
    """Betas whose roots are on a straight line, [T] float64 (Rombach et al. 2022, code)."""
    first, last = ends or linear_range(timesteps, "scaled_linear")
    return torch.linspace(first**0.5, last**0.5, timesteps, dtype=torch.float64).square()


def cosine_betas(timesteps: int) -> Tensor:
    """Betas of abar(t) = cos^2((t/T + s) / (1 + s) * pi/2), [T] float64 (Nichol & Dhariwal 2021, eq. 17)."""
    t = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
    abar = torch.cos((t + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2) ** 2
    return (1 - abar[1:] / abar[:-1]).clamp(max=MAX_BETA)


def to_zero_terminal_snr(betas_T: Tensor) -> Tensor:
    """Betas whose x_T is noise alone: sqrt(abar) shifted to end at 0 and stretched to start as before, [T]
    (Lin et al. 2023, algorithm 1)."""
    root = torch.cumprod(1 - betas_T, dim=0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    abar = root.square()
    return 1 - torch.cat([abar[:1], abar[1:] / abar[:-1]])


class Posterior(NamedTuple):
    """q(x_{t-1}|x_t, x_0): the weight of x_0 in its mean (Ho et al. 2020, eq. 7), the log of its
    variance, each [B, 1, 1, 1] float64."""

    gain: Tensor
    log_variance: Tensor


_LINEAR = {"linear": linear_betas, "scaled_linear": scaled_linear_betas}


class NoiseSchedule:
    """Signal and noise of every timestep, and the conversions that training needs."""

    def __init__(
        self,
        kind: Schedule,
        timesteps: int,
        *,
        zero_terminal_snr: bool = False,
        ends: tuple[float, float] | None = None,
    ) -> None:
        self.timesteps = timesteps
        self.betas = cosine_betas(timesteps) if kind == "cosine" else _LINEAR[kind](timesteps, ends)
        if zero_terminal_snr:
            self.betas = to_zero_terminal_snr(self.betas)
        self.alpha_bar = torch.cumprod(1 - self.betas, dim=0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), self.alpha_bar[:-1]])
        self._gain = before.sqrt() * self.betas / (1 - self.alpha_bar)
        variance = self.betas * (1 - before) / (1 - self.alpha_bar)
        variance[0] = variance[1]  # none at t = 0: the authors' code takes its neighbour's
        self._log_posterior, self._log_betas = variance.log(), self.betas.log()
        self._on_device: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def coefficients(self, t_B: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t), each [B, 1, 1, 1] float32."""
        if t_B.device not in self._on_device:
            signal, noise = self.alpha_bar.sqrt().float(), (1 - self.alpha_bar).sqrt().float()
            self._on_device[t_B.device] = (signal.to(t_B.device), noise.to(t_B.device))
        signal_T, noise_T = self._on_device[t_B.device]
        return signal_T[t_B].view(-1, 1, 1, 1), noise_T[t_B].view(-1, 1, 1, 1)

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratios abar / (1 - abar), [T] float64."""
        return self.alpha_bar / (1 - self.alpha_bar)

    def posterior(self, t_B: Tensor) -> Posterior:
        """Of the timesteps, counted from 0. At t = 0, where it is a point, with the variance of t = 1."""
        return Posterior(_rows(self._gain, t_B), _rows(self._log_posterior, t_B))

    def fixed_log_variance(self, t_B: Tensor) -> Tensor:
        """ln beta_t, and at t = 0 the posterior's ("fixed large" of the authors), [B, 1, 1, 1] float64."""
        return torch.where(
            t_B.view(-1, 1, 1, 1) == 0, self.posterior(t_B).log_variance, _rows(self._log_betas, t_B)
        )

    def learned_log_variance(self, raw_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """Between ln beta~_t, where the network's output is -1, and ln beta_t, where it is 1, [B, C, H, W]
        float64 (Nichol & Dhariwal 2021, eq. 15)."""
        share_BCHW = (raw_BCHW.double() + 1) / 2
        return share_BCHW * _rows(self._log_betas, t_B) + (1 - share_BCHW) * self.posterior(t_B).log_variance

    @property
    def sigmas(self) -> Tensor:
        """The noise levels sqrt(1/abar_t - 1) that are finite, rising, float64."""
        return (1 / self.alpha_bar[self.alpha_bar > 0] - 1).sqrt()

    def time_of(self, sigma_B: Tensor) -> Tensor:
        """The timestep of a noise level, [B] float32: a straight line in ln sigma between two of them, the
        first or the last one beyond the ends."""
        levels_T = self.sigmas.log().to(sigma_B.device)
        wanted_B = sigma_B.double().log().clamp(levels_T[0], levels_T[-1])
        above_B = torch.searchsorted(levels_T, wanted_B.detach()).clamp(1, len(levels_T) - 1)
        low_B, high_B = levels_T[above_B - 1], levels_T[above_B]
        return (above_B - 1 + (wanted_B - low_B) / (high_B - low_B)).float()

    def sigmas_near(self, wanted: Iterable[float]) -> dict[float, int]:
        """The noise levels sigma = sqrt(1/abar_t - 1) nearest to the wanted ones, rising, with timesteps."""
        sigma_T = (1 / self.alpha_bar - 1).sqrt()
        nearest = sorted({int((sigma_T.log() - math.log(sigma)).abs().argmin()) for sigma in wanted})
        return {sigma_T[t].item(): t for t in nearest}

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


def _rows(values_T: Tensor, t_B: Tensor) -> Tensor:
    """The values at the timesteps, [B, 1, 1, 1] on their device."""
    return values_T.to(t_B.device)[t_B].view(-1, 1, 1, 1)

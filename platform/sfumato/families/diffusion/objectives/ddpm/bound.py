"""The variational bound of a DDPM on the likelihood of 8-bit images (Ho et al. 2020, eq. 5).

    -log p(x_0) <= KL(q(x_T|x_0) || N(0, I)) - log p(x_0|x_1)
                   + sum_{t=2}^T KL(q(x_{t-1}|x_t, x_0) || p(x_{t-1}|x_t))

p(x_{t-1}|x_t) has the variance beta_t, of the two that the paper offers (sec. 3.2) the one whose bound is
tighter; q's is beta~_t = beta_t (1 - abar_{t-1}) / (1 - abar_t). With the predicted image x^ a middle term is

    D/2 (r - 1 - ln r) + abar_{t-1} beta_t / (2 (1 - abar_t)^2) || x_0 - x^ ||^2,    r = beta~_t / beta_t

and p(x_0|x_1) is a normal around x^, integrated over each pixel value's bin (eq. 13). The sum over t is
estimated without bias at stratified random timesteps.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sfumato.core.rng import Rng
from sfumato.families.diffusion.objectives.ddpm.schedule import NoiseSchedule

HALF_BIN = 1 / 255
"""Half the distance of two neighbouring pixel values in [-1, 1]."""
LEAST_PROBABILITY = 1e-12

Denoise = Callable[[Tensor, Tensor], Tensor]
"""The predicted image at (x_t [B, C, H, W], timestep [B] counted from 0)."""


def bound_bits(denoise: Denoise, x0_BCHW: Tensor, schedule: NoiseSchedule, steps: int, rng: Rng) -> Tensor:
    """An unbiased estimate of the bound in bits per dimension, [B], from `steps` + 1 network evaluations.

    `x0_BCHW` holds pixel values k/127.5 - 1. `steps` beyond T - 1 count as T - 1, the whole sum. The noise of
    an evaluation is drawn on the CPU, wherever the images are.
    """
    steps = min(steps, schedule.timesteps - 1)
    nats_B = _prior(x0_BCHW, schedule) + _decoder(denoise, x0_BCHW, schedule, rng)
    for step in range(steps):
        nats_B = nats_B + _middle(denoise, x0_BCHW, schedule, (step, steps), rng)
    return nats_B / (x0_BCHW[0].numel() * math.log(2))


def _prior(x0_BCHW: Tensor, schedule: NoiseSchedule) -> Tensor:
    """KL(q(x_T|x_0) || N(0, I)), [B]."""
    abar = schedule.alpha_bar[-1].item()
    return 0.5 * (abar * x0_BCHW.square() - abar - math.log1p(-abar)).flatten(1).sum(dim=1)


def _middle(
    denoise: Denoise, x0_BCHW: Tensor, schedule: NoiseSchedule, stratum: tuple[int, int], rng: Rng
) -> Tensor:
    """This stratum's share of the sum over t = 2 .. T, [B]."""
    index, strata = stratum
    terms = schedule.timesteps - 1
    position_B = (index + rng.uniform().to(x0_BCHW.device)) / strata * terms
    t_B = 1 + position_B.long().clamp(max=terms - 1)  # counted from 0, so the paper's t - 1
    abar, beta = schedule.alpha_bar.to(x0_BCHW.device), schedule.betas.to(x0_BCHW.device)[t_B]
    ratio_B = (1 - abar[t_B - 1]) / (1 - abar[t_B])
    spread_B = 0.5 * (ratio_B - 1 - ratio_B.log()) * x0_BCHW[0].numel()
    weight_B = abar[t_B - 1] * beta / (2 * (1 - abar[t_B]).square())
    eps_BCHW = rng.normal(*x0_BCHW.shape[1:]).to(x0_BCHW.device)
    xt_BCHW = schedule.add_noise(x0_BCHW, eps_BCHW, t_B)
    squared_B = (x0_BCHW - denoise(xt_BCHW, t_B)).square().flatten(1).sum(dim=1)
    return ((spread_B + weight_B * squared_B) * terms / strata).float()


def _decoder(denoise: Denoise, x0_BCHW: Tensor, schedule: NoiseSchedule, rng: Rng) -> Tensor:
    """-log p(x_0|x_1), [B]; the bins at the ends are open."""
    std = math.sqrt(schedule.betas[0].item())
    t_B = torch.zeros(len(x0_BCHW), dtype=torch.int64, device=x0_BCHW.device)
    eps_BCHW = rng.normal(*x0_BCHW.shape[1:]).to(x0_BCHW.device)
    x1_BCHW = schedule.add_noise(x0_BCHW, eps_BCHW, t_B)
    mean_BCHW = denoise(x1_BCHW, t_B)
    above = torch.special.ndtr((x0_BCHW + HALF_BIN - mean_BCHW).double() / std)
    below = torch.special.ndtr((x0_BCHW - HALF_BIN - mean_BCHW).double() / std)
    above = torch.where(x0_BCHW > 1 - HALF_BIN, torch.ones_like(above), above)
    below = torch.where(x0_BCHW < -1 + HALF_BIN, torch.zeros_like(below), below)
    return -(above - below).clamp(min=LEAST_PROBABILITY).log().flatten(1).sum(dim=1).float()

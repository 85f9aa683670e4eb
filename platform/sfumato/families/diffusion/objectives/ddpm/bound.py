"""The variational bound of a DDPM on the likelihood of 8-bit images (Ho et al. 2020, eq. 5).

    -log p(x_0) <= KL(q(x_T|x_0) || N(0, I)) - log p(x_0|x_1)
                   + sum_{t=2}^T KL(q(x_{t-1}|x_t, x_0) || p(x_{t-1}|x_t))

q's variance is beta~_t = beta_t (1 - abar_{t-1}) / (1 - abar_t). With the predicted image x^ and p's variance
s_t, a middle term is, for each value,

    (beta~_t / s_t - 1 - ln(beta~_t / s_t)) / 2 + abar_{t-1} beta_t^2 / (2 s_t (1 - abar_t)^2) (x_0 - x^)^2

and p(x_0|x_1) is a normal around x^, integrated over each pixel value's bin (eq. 13). The sum over t is
estimated without bias at stratified random timesteps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.core.rng import Rng
from sfumato.families.diffusion.objectives.ddpm.schedule import NoiseSchedule

HALF_BIN = 1 / 255
"""Half the distance of two neighbouring pixel values in [-1, 1]."""


class Prediction(NamedTuple):
    """What a model says of x_{t-1} given x_t: the image [B, C, H, W] behind it, and the log of its variance,
    of that shape or [B, 1, 1, 1]."""

    image: Tensor
    log_variance: Tensor


Reverse = Callable[[Tensor, Tensor], Prediction]
"""The prediction at (x_t [B, C, H, W], timestep [B] counted from 0)."""


def bound_bits(reverse: Reverse, x0_BCHW: Tensor, schedule: NoiseSchedule, steps: int, rng: Rng) -> Tensor:
    """An unbiased estimate of the bound in bits per dimension, [B], from `steps` + 1 network evaluations.

    `x0_BCHW` holds pixel values k/127.5 - 1. `steps` beyond T - 1 count as T - 1, the whole sum. The noise of
    an evaluation is drawn on the CPU, wherever the images are.
    """
    steps = min(steps, schedule.timesteps - 1)
    nats_B = _prior(x0_BCHW, schedule) + _first(reverse, x0_BCHW, schedule, rng)
    for step in range(steps):
        nats_B = nats_B + _middle(reverse, x0_BCHW, schedule, (step, steps), rng)
    return nats_B / (x0_BCHW[0].numel() * math.log(2))


def decoder_nats(prediction: Prediction, x0_BCHW: Tensor, *, open_ends: bool = True) -> Tensor:
    """-log p(x_0|x_1), [B]; the bins at -1 and 1 reach to infinity if `open_ends`.

    In logarithms throughout, so that a pixel that the model thinks impossible costs what it should.
    """
    std = (0.5 * prediction.log_variance.double()).exp()
    # In float64: far from the prediction both ends of a bin would else be the same number.
    distance = x0_BCHW.double() - prediction.image.double()
    above, below = (distance + HALF_BIN) / std, (distance - HALF_BIN) / std
    # By symmetry in the lower tail, where the logarithm of the distribution function is exact.
    upper, lower = (torch.where(above + below > 0, *pair) for pair in ((-below, above), (-above, below)))
    ends = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    log_share = ends[0] + torch.log1p(-(ends[1] - ends[0]).exp())
    if open_ends:
        log_share = torch.where(x0_BCHW > 1 - HALF_BIN, torch.special.log_ndtr(-below), log_share)
        log_share = torch.where(x0_BCHW < -1 + HALF_BIN, torch.special.log_ndtr(above), log_share)
    nats_B: Tensor = -log_share.flatten(1).sum(dim=1)
    return nats_B.float()


def middle_nats(prediction: Prediction, x0_BCHW: Tensor, schedule: NoiseSchedule, t_B: Tensor) -> Tensor:
    """KL(q(x_{t-1}|x_t, x_0) || p(x_{t-1}|x_t)), [B], for timesteps counted from 0, without 0."""
    posterior = schedule.posterior(t_B)
    theirs = prediction.log_variance.double()
    mean = posterior.gain * (x0_BCHW - prediction.image)
    ratio = posterior.log_variance - theirs
    nats = 0.5 * (ratio.exp() - 1 - ratio + mean.double().square() / theirs.exp())
    return nats.expand_as(x0_BCHW).flatten(1).sum(dim=1).float()


def _prior(x0_BCHW: Tensor, schedule: NoiseSchedule) -> Tensor:
    """KL(q(x_T|x_0) || N(0, I)), [B]."""
    abar = schedule.alpha_bar[-1].item()
    return 0.5 * (abar * x0_BCHW.square() - abar - math.log1p(-abar)).flatten(1).sum(dim=1)


def _first(reverse: Reverse, x0_BCHW: Tensor, schedule: NoiseSchedule, rng: Rng) -> Tensor:
    """-log p(x_0|x_1), [B], at a draw of x_1."""
    t_B = torch.zeros(len(x0_BCHW), dtype=torch.int64, device=x0_BCHW.device)
    eps_BCHW = rng.normal(*x0_BCHW.shape[1:]).to(x0_BCHW.device)
    return decoder_nats(reverse(schedule.add_noise(x0_BCHW, eps_BCHW, t_B), t_B), x0_BCHW)


def _middle(
    reverse: Reverse, x0_BCHW: Tensor, schedule: NoiseSchedule, stratum: tuple[int, int], rng: Rng
) -> Tensor:
    """This stratum's share of the sum over t = 2 .. T, [B]."""
    index, strata = stratum
    terms = schedule.timesteps - 1
    position_B = (index + rng.uniform().to(x0_BCHW.device)) / strata * terms
    t_B = 1 + position_B.long().clamp(max=terms - 1)  # counted from 0, so the paper's t - 1
    eps_BCHW = rng.normal(*x0_BCHW.shape[1:]).to(x0_BCHW.device)
    xt_BCHW = schedule.add_noise(x0_BCHW, eps_BCHW, t_B)
    return middle_nats(reverse(xt_BCHW, t_B), x0_BCHW, schedule, t_B) * terms / strata

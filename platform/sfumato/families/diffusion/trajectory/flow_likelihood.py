"""The likelihood of images under the differential equation that a model samples by.

A model that predicts the image in x = y + sigma n, D(x; sigma), follows (Karras et al. 2022, eq. 1, 3)

    dx/dsigma = (x - D(x; sigma)) / sigma

and the density changes along the way by its divergence (Chen et al. 2018, eq. 8; Song et al. 2021, eq. 39),
so that for d values

    log p(x_low) = log N(x_high; 0, sigma_high^2) + int (d - tr dD/dx) d ln sigma

The trace is estimated by v^T (dD/dx) v with random signs v (Hutchinson 1990; Skilling 1989), the same for an
image at all noise levels. Heun's method follows x; the trapezoidal rule adds up the traces.

The density is that of continuous values. Uniform noise fills the steps between the 256 levels, so that its
mean bounds the likelihood of the 8-bit image (Theis et al. 2016, eq. 5), and it is the density at the lowest
noise level, which lies below those steps: there the equation ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from sfumato.core.rng import Rng

LOWEST, HIGHEST = 0.002, 80.0
"""Noise levels of the ends, against data in [-1, 1]; the steps between two levels are 0.0078 wide."""
LEVELS_PER_UNIT = 127.5

Denoise = Callable[[Tensor, float], Tensor]
"""D(x; sigma): the predicted image at (x [B, C, H, W], sigma), differentiable in x."""


def even_levels(steps: int, low: float = LOWEST, high: float = HIGHEST) -> list[float]:
    """`steps` + 1 rising noise levels, evenly spaced in their logarithm."""
    ratio = math.log(high / low) / steps
    return [low * math.exp(ratio * i) for i in range(steps)] + [high]


def flow_bits(denoise: Denoise, x0_BCHW: Tensor, sigmas: Sequence[float], rng: Rng) -> Tensor:
    """Bits per dimension of images k/127.5 - 1, [B].

    Costs 2 n + 1 network evaluations for n steps between `sigmas`, which rise, n + 1 of them with a gradient.
    """
    shape, device = x0_BCHW.shape[1:], x0_BCHW.device
    within_BCHW = rng.uniform(*shape).to(device) - 0.5
    signs_BCHW = torch.where(rng.uniform(*shape) < 0.5, -1.0, 1.0).to(device)
    nats_B = -log_density(denoise, x0_BCHW + within_BCHW / LEVELS_PER_UNIT, sigmas, [signs_BCHW])
    return (nats_B / (x0_BCHW[0].numel() * math.log(2)) + math.log2(LEVELS_PER_UNIT)).float()


def log_density(
    denoise: Denoise, x_BCHW: Tensor, sigmas: Sequence[float], probes: Sequence[Tensor]
) -> Tensor:
    """log p(x) at the first of `sigmas`, [B] float64; its trace is the mean over `probes` [B, C, H, W]."""
    values = x_BCHW[0].numel()
    volume_B = torch.zeros(len(x_BCHW), dtype=torch.float64, device=x_BCHW.device)
    image_BCHW, trace_B = _with_trace(denoise, x_BCHW, sigmas[0], probes)
    for low, high in pairwise(sigmas):
        slope_BCHW = (x_BCHW - image_BCHW) / low
        ahead_BCHW = x_BCHW + (high - low) * slope_BCHW
        with torch.no_grad():
            slope_BCHW = (slope_BCHW + (ahead_BCHW - denoise(ahead_BCHW, high)) / high) / 2
        x_BCHW, before_B = x_BCHW + (high - low) * slope_BCHW, trace_B
        image_BCHW, trace_B = _with_trace(denoise, x_BCHW, high, probes)
        volume_B += (values - (before_B + trace_B) / 2) * math.log(high / low)
    z_BD = x_BCHW.flatten(1).double() / sigmas[-1]
    normal_B = -0.5 * z_BD.square().sum(dim=1) - values * math.log(sigmas[-1] * math.sqrt(2 * math.pi))
    return normal_B + volume_B


def _with_trace(
    denoise: Denoise, x_BCHW: Tensor, sigma: float, probes: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """D(x; sigma) [B, C, H, W], and the estimate of the trace of its Jacobian, [B] float64."""
    with torch.enable_grad():
        x_BCHW = x_BCHW.detach().requires_grad_()
        image_BCHW = denoise(x_BCHW, sigma)
        found = [
            (torch.autograd.grad(image_BCHW, x_BCHW, probe, retain_graph=True)[0] * probe).flatten(1)
            for probe in probes
        ]
    return image_BCHW.detach(), torch.stack(found).double().sum(dim=2).mean(dim=0)

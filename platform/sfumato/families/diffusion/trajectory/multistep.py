"""The multistep solvers of DPM-Solver++ (Lu et al. 2022), which two samplers share.

With lambda = ln(alpha / sigma), h the length of a step in it, k = 1 for the differential equation and k = 2
for the stochastic one, a step is (eq. 9; app. B)

    x_t = sigma_t / sigma_s e^(-(k - 1) h) x_s
          + alpha_t int_0^h k e^(-k (h - tau)) D(lambda_s + tau) dtau + noise

with the predicted image D expanded around the step's start: D0 + tau D' + tau^2 / 2 D''.

The second order is diffusers'. Its third order (0.42) gives D'' half of its weight in the differential
equation, as the authors' code does, and so converges with order 2; in the stochastic one a wrong sign leaves
order 1. `ThirdOrder` has the integrals as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from sfumato.families.diffusion.samplers import NoiseLevels

LOWEST_LOG_SNR = -5.1
"""Half log-SNR at which DPM-Solver++ starts on the cosine schedule, whose own end lies at about -10: the
value that the solver's authors recommend."""


class ThirdOrder(DPMSolverMultistepScheduler):  # type: ignore[misc]
    """DPM-Solver++ whose third order is of third order."""

    def multistep_dpm_solver_third_order_update(
        self, model_output_list: list[Tensor], *, sample: Tensor, noise: Tensor | None = None
    ) -> Tensor:
        """x_t from the last three predicted images; `noise` is standard normal, None for the equation."""
        sigmas = self.sigmas[self.step_index - 2 : self.step_index + 2]
        alpha_4, sigma_4 = self._sigma_to_alpha_sigma_t(sigmas)
        h1, h0, h = (alpha_4.log() - sigma_4.log()).diff()  # of the step before last, the last one, this one
        m2, m1, m0 = model_output_list
        slope0, slope1 = (m0 - m1) / h0, (m1 - m2) / h1
        curve = (slope0 - slope1) / (h0 + h1)  # D''/2
        slope = slope0 + h0 * curve  # D' at the step's start
        k = 1 if noise is None else 2
        first = -torch.expm1(-k * h)
        second = 1 - first / (k * h)
        third = 1 - 2 * second / (k * h)
        kept = sigma_4[3] / sigma_4[2] * (1 if noise is None else torch.exp(-h))
        drift = first * m0 + second * h * slope + third * h**2 * curve
        x_t: Tensor = kept * sample + alpha_4[3] * drift
        return x_t if noise is None else x_t + sigma_4[3] * torch.sqrt(-torch.expm1(-2 * h)) * noise


def multistep(algorithm: str, order: int, levels: NoiseLevels, *, clip: bool) -> Any:
    """A fresh scheduler; `algorithm` is dpmsolver++ or sde-dpmsolver++.

    It knows clipping as dynamic thresholding (Saharia et al. 2022) whose threshold may not exceed 1, which is
    the same thing.
    """
    return (ThirdOrder if order == 3 else DPMSolverMultistepScheduler)(
        **levels.for_diffusers(),
        algorithm_type=algorithm,
        solver_order=order,
        thresholding=clip,
        sample_max_value=1.0,
        lambda_min_clipped=LOWEST_LOG_SNR if _starts_early(levels) else -float("inf"),
    )


def _starts_early(levels: NoiseLevels) -> bool:
    """Whether the noisiest levels are left out; those of a zero terminal SNR are there to start from."""
    return levels.schedule == "cosine" and not levels.zero_terminal_snr

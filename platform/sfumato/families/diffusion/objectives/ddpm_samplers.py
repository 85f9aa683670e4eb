"""The diffusers scheduler that a configuration means.

All three start at the last timestep ("trailing" spacing, Lin et al. 2023, table 2), which is the noise
level that standard normal noise stands for, and work on the schedule that training used.
"""

from __future__ import annotations

from typing import Any

from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from sfumato.families.diffusion.objectives.ddpm import DDPMConfig, DDPMSampling
from sfumato.families.diffusion.objectives.ddpm_schedule import linear_range

LOWEST_LOG_SNR = -5.1
"""Half log-SNR at which DPM-Solver++ starts on the cosine schedule, whose own end lies at about -10: the
value that the solver's authors recommend."""


def build_scheduler(
    objective: DDPMConfig, sampling: DDPMSampling, *, clip: bool
) -> DDPMScheduler | DDIMScheduler | DPMSolverMultistepScheduler:
    """A fresh scheduler: it holds the state of one trajectory, so every call of `sample` makes its own."""
    shared = _shared(objective)
    if sampling.sampler == "ddpm":
        return DDPMScheduler(**shared, variance_type="fixed_small", clip_sample=clip)
    if sampling.sampler == "ddim":
        return DDIMScheduler(**shared, clip_sample=clip)
    # This scheduler knows clipping as dynamic thresholding (Saharia et al. 2022) whose threshold may not
    # exceed 1, which is the same thing.
    return DPMSolverMultistepScheduler(
        **shared,
        algorithm_type="dpmsolver++",
        solver_order=2,
        thresholding=clip,
        sample_max_value=1.0,
        lambda_min_clipped=LOWEST_LOG_SNR if objective.schedule == "cosine" else -float("inf"),
    )


def _shared(objective: DDPMConfig) -> dict[str, Any]:
    first, last = linear_range(objective.timesteps)
    return {
        "num_train_timesteps": objective.timesteps,
        "beta_schedule": "linear" if objective.schedule == "linear" else "squaredcos_cap_v2",
        "beta_start": first,
        "beta_end": last,
        "prediction_type": "epsilon" if objective.prediction == "epsilon" else "v_prediction",
        "timestep_spacing": "trailing",
    }

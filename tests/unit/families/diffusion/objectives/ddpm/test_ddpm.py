"""Every number of steps that a DDPM allows is the number of timesteps that its samplers take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sfumato.families.diffusion.objectives.ddpm import DDPMConfig, DDPMSampling
from sfumato.families.diffusion.pipeline import denoise, set_timesteps

T = 1000


def scheduler(sampler: str, schedule: str, timesteps: int = T) -> Any:
    objective = DDPMConfig.model_validate({"timesteps": timesteps, "schedule": schedule})
    return DDPMSampling.model_validate({"sampler": sampler}).sampler.scheduler(objective.levels, clip=True)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmsolver++"])
def test_there_are_as_many_timesteps_as_steps(sampler: str, schedule: str) -> None:
    ours, theirs = scheduler(sampler, schedule), scheduler(sampler, schedule)
    for steps in range(1, T + 1):
        set_timesteps(ours, steps)
        found = ours.timesteps
        assert len(found) == steps == ours.num_inference_steps
        assert found[0] < T and found[-1] >= 0 and (found.diff() < 0).all(), steps
        theirs.set_timesteps(steps)
        if len(theirs.timesteps) == steps and theirs.timesteps.min() >= 0:
            assert torch.equal(found, theirs.timesteps), "what diffusers has right stays as it is"
        if sampler == "dpmsolver++":
            abar = ours.alphas_cumprod.double().numpy()
            noise = np.append(np.sqrt((1 - abar) / abar)[found.numpy()], 0)
            np.testing.assert_allclose(ours.sigmas.numpy(), noise, rtol=1e-5)


@pytest.mark.parametrize(
    ("sampler", "schedule", "timesteps", "steps"),
    [
        ("ddpm", "linear", 100, 29),
        ("ddim", "cosine", 100, 62),
        ("dpmsolver++", "linear", 100, 58),
        ("dpmsolver++", "cosine", 20, 14),
        ("dpmsolver++", "cosine", 20, 20),
    ],
)
def test_the_network_is_asked_once_a_step_and_for_no_timestep_that_is_none(
    sampler: str, schedule: str, timesteps: int, steps: int
) -> None:
    asked = []

    class Still(torch.nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor, *_: object, **__: object) -> tuple[torch.Tensor]:
            asked.append(int(t))
            return (0 * x,)

    noise = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    rows = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    made = denoise(Still(), scheduler(sampler, schedule, timesteps), noise, steps=steps, generators=rows)
    assert len(asked) == steps
    assert all(0 <= t < timesteps for t in asked)
    assert made.isfinite().all()

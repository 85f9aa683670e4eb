"""The samplers of DDPM: the order of their error, and that no noise is left, whatever the number of steps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import integrate

from sfumato.core.rng import SampleRng
from sfumato.families.diffusion.objectives.ddpm import DDPMConfig, DDPMSampling
from sfumato.families.diffusion.objectives.ddpm.schedule import NoiseSchedule
from sfumato.families.diffusion.pipeline import denoise

SOLVERS = [
    {"kind": "dpmsolver++"},
    {"kind": "dpmsolver++", "order": 3},
    {"kind": "sde-dpmsolver++"},
    {"kind": "sde-dpmsolver++", "order": 3},
    {"kind": "unipc", "order": 1},
    {"kind": "unipc"},
    {"kind": "unipc", "order": 3},
]
FIRST, LAST = -3.0, 3.0
"""Half log-SNR at both ends of the solvers' test."""


def named(sampler: dict[str, Any]) -> str:
    return f"{sampler['kind']}-{sampler.get('order', 2)}"


def alpha(log_snr: float) -> float:
    return 1 / math.sqrt(1 + math.exp(-2 * log_snr))


def image(log_snr: float) -> float:
    """What the network predicts: the same for every x, so that a solution is an integral over it."""
    return math.sin(2 * log_snr)


def exact(k: int) -> float:
    """dx/dlambda = -(alpha^2 + k - 1) x + k alpha D; k = 2 is the mean of the stochastic equation."""

    def slope(log_snr: float, x: Any) -> Any:
        return -(alpha(log_snr) ** 2 + k - 1) * x + k * alpha(log_snr) * image(log_snr)

    found = integrate.solve_ivp(slope, (FIRST, LAST), [0.7], rtol=1e-11, atol=1e-12)
    return float(found.y[0, -1])


def followed(sampler: dict[str, Any], steps: int, *, draws: bool) -> float:
    """The sampler's own x at LAST, after even steps from FIRST, without noise."""
    options = DDPMSampling(sampler=sampler)
    scheduler = options.sampler.scheduler(DDPMConfig(prediction="v", schedule="linear").levels, clip=False)
    scheduler.set_timesteps(steps + 1)  # one more: the last step, to no noise, is of first order by design
    at = torch.linspace(FIRST, LAST, steps + 1, dtype=torch.float64)
    scheduler.sigmas = torch.cat([torch.exp(-at), torch.zeros(1, dtype=torch.float64)])
    x = torch.full((1, 1, 1, 1), 0.7, dtype=torch.float64)
    silent = {"variance_noise": torch.zeros_like(x)} if draws else {}
    for t, log_snr in zip(scheduler.timesteps[:-1], at.tolist(), strict=False):
        keep = alpha(log_snr)
        velocity = (keep * x - image(log_snr)) / (keep * math.exp(-log_snr))
        x = scheduler.step(velocity, t, x, **silent).prev_sample.double()
    return x.item()


@pytest.mark.parametrize(
    ("sampler", "order"),
    list(zip(SOLVERS, [2, 3, 2, 3, 2, 3, 3], strict=True)),  # UniPC's corrector adds one, up to three
    ids=lambda value: named(value) if isinstance(value, dict) else str(value),
)
def test_the_error_falls_with_the_order_that_the_sampler_claims(sampler: dict[str, Any], order: int) -> None:
    draws = sampler["kind"].startswith("sde")
    truth = exact(2 if draws else 1)
    coarse, fine = (abs(followed(sampler, steps, draws=draws) - truth) for steps in (20, 40))
    assert fine < 0.05
    assert math.log2(coarse / fine) > order - 0.6


class Point(torch.nn.Module):
    """The optimal network for data that is the one value 0.3; counts its calls."""

    def __init__(self, objective: DDPMConfig) -> None:
        super().__init__()
        self.alpha_bar = NoiseSchedule(objective.schedule, objective.timesteps).alpha_bar
        self.calls = 0

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None, return_dict: bool
    ) -> tuple[torch.Tensor]:
        self.calls += 1
        keep, noise = self.alpha_bar[t].sqrt(), (1 - self.alpha_bar[t]).sqrt()
        return (((keep * x.double() - 0.3) / noise).float(),)


@pytest.mark.parametrize("steps", [1, 7, 61])
@pytest.mark.parametrize("kind", ["linear", "cosine"])
@pytest.mark.parametrize("sampler", SOLVERS, ids=named)
def test_no_noise_is_left_where_steps_do_not_divide_the_timesteps(
    sampler: dict[str, Any], kind: str, steps: int
) -> None:
    objective = DDPMConfig(schedule=kind, prediction="v")
    options, rng, network = (
        DDPMSampling(sampler=sampler, steps=steps),
        SampleRng(0, range(2)),
        Point(objective),
    )
    x = denoise(
        network,
        options.sampler.scheduler(objective.levels, clip=False),
        rng.normal(1, 2, 2),
        steps=steps,
        generators=rng.generators,
    )
    torch.testing.assert_close(x, torch.full_like(x, 0.3), rtol=0, atol=2e-5)
    assert network.calls == steps

"""The likelihood of the probability flow against Gaussians whose density is known, and the exact trace."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special, stats

from sfumato.core.rng import SampleRng
from sfumato.families.diffusion.guidance.labels import Guided
from sfumato.families.diffusion.objectives.ddpm import DDPM, DDPMConfig, DDPMSampling
from sfumato.families.diffusion.objectives.ddpm.schedule import NoiseSchedule
from sfumato.families.diffusion.objectives.edm import EDM, EDMConfig, EDMSampling
from sfumato.families.diffusion.objectives.rectified_flow import (
    RectifiedFlow,
    RectifiedFlowConfig,
    RectifiedFlowSampling,
)
from sfumato.families.diffusion.trajectory.flow_likelihood import even_levels, log_density

MEAN, STD, ROWS, STEPS = 0.1, 0.3, 4, 40


def expected(x: torch.Tensor, sigma: Any) -> Any:
    """E[y | y + sigma n = x] of data y ~ N(MEAN, STD^2)."""
    return (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)


class Network(torch.nn.Module):
    """The optimal network, given the image as a function of (x, t) in the units of its objective."""

    def __init__(self, answer) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.answer = answer

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None, return_dict: bool
    ) -> tuple[torch.Tensor]:
        return (self.answer(x.double(), t.double()).float(),)


def edm_output(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    sigma2 = torch.exp(8 * t)
    total = sigma2 + 0.25
    noisy = x * total.sqrt()
    return (expected(noisy, sigma2.sqrt()) - 0.25 / total * noisy) / (sigma2.sqrt() * 0.5 / total.sqrt())


def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    t = t / 1000
    return (x - expected(x / (1 - t), t / (1 - t))) / t


def ddpm_v(schedule: NoiseSchedule):  # type: ignore[no-untyped-def]
    def answer(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        abar = schedule.alpha_bar[t.long()].view(-1, 1, 1, 1)
        return (abar.sqrt() * x - expected(x / abar.sqrt(), (1 / abar - 1).sqrt())) / (1 - abar).sqrt()

    return answer


LINEAR, COSINE = (NoiseSchedule(kind, 1000) for kind in ("linear", "cosine"))


def least(schedule: NoiseSchedule) -> float:
    return (1 / schedule.alpha_bar[0] - 1).sqrt().item()


@pytest.mark.parametrize(
    ("objective", "options", "answer", "low"),
    [
        (EDM(EDMConfig()), EDMSampling(likelihood_steps=STEPS, sigma_min=0.01), edm_output, 0.01),
        (
            RectifiedFlow(RectifiedFlowConfig()),
            RectifiedFlowSampling(likelihood_steps=STEPS),
            velocity,
            0.002,
        ),
        (
            DDPM(DDPMConfig(schedule="linear")),
            DDPMSampling(likelihood="flow", likelihood_steps=STEPS),
            ddpm_v(LINEAR),
            least(LINEAR),
        ),
        (
            DDPM(DDPMConfig(schedule="cosine")),
            DDPMSampling(likelihood="flow", likelihood_steps=STEPS),
            ddpm_v(COSINE),
            least(COSINE),
        ),
    ],
    ids=["edm", "rectified_flow", "ddpm-linear", "ddpm-cosine"],
)
def test_bits_are_those_of_a_gaussian(objective: Any, options: Any, answer: Any, low: float) -> None:
    """Each row: its dequantised values under N(MEAN, STD^2 + low^2), in bits a value."""
    rng = SampleRng(0, range(ROWS))
    x = ((MEAN + STD * rng.normal(1, 4, 4) + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1
    found = objective.bits_per_dim(
        Guided(Network(answer), None, 1.0, 0), x, options, SampleRng(1, range(ROWS))
    )
    filled = x + (SampleRng(1, range(ROWS)).uniform(1, 4, 4) - 0.5) / 127.5
    density = stats.norm.logpdf(filled.double().numpy(), MEAN, math.hypot(STD, low)) - math.log(127.5)
    exact = -torch.tensor(density).flatten(1).mean(dim=1) / math.log(2)
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=0.015)


CENTRES = np.array([[0.5, 0.1], [-0.4, -0.3]])
SHARES, WIDTH = np.array([0.3, 0.7]), 0.15


def two_blobs(x_B112: torch.Tensor, sigma: float) -> torch.Tensor:
    """The optimal denoiser of a mixture of two round Gaussians in the plane."""
    centres_2D, shares_2 = torch.tensor(CENTRES), torch.tensor(SHARES)
    x_BD, variance = x_B112.flatten(1), WIDTH**2 + sigma**2
    apart_B2 = (x_BD[:, None] - centres_2D).square().sum(dim=2)
    belongs_B2 = torch.softmax(shares_2.log() - apart_B2 / (2 * variance), dim=1)
    image_B2D = (WIDTH**2 * x_BD[:, None] + sigma**2 * centres_2D) / variance
    return (belongs_B2[..., None] * image_B2D).sum(dim=1).view_as(x_B112)


def points() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(16, 1, 1, 2, generator=generator, dtype=torch.float64) * 0.4


BASIS = [math.sqrt(2) * torch.eye(2, dtype=torch.float64)[axis].view(1, 1, 1, 2) for axis in (0, 1)]
"""As probes, they give the trace itself."""


def mixture_error(steps: int) -> float:
    low = 0.02
    x = points()
    found = log_density(two_blobs, x, even_levels(steps, low, 80.0), [b.expand_as(x) for b in BASIS])
    away_B2 = ((x.numpy().reshape(-1, 1, 2) - CENTRES) ** 2).sum(axis=2)
    variance = WIDTH**2 + low**2
    exact = special.logsumexp(-away_B2 / (2 * variance), b=SHARES / (2 * math.pi * variance), axis=1)
    return float(np.abs(found.numpy() - exact).max())


def test_the_density_of_a_mixture_is_reached_to_second_order() -> None:
    coarse, fine = mixture_error(60), mixture_error(120)
    assert fine < 0.05
    assert coarse / fine > 3, (coarse, fine)


def test_random_signs_estimate_the_exact_trace() -> None:
    """Many draws for one point: their mean is the exact figure, from which single ones differ."""
    sigmas, draws = even_levels(40, 0.02, 80.0), 2000
    x = points()[3:4]
    exact = log_density(two_blobs, x, sigmas, BASIS)
    signs = torch.randint(0, 2, (draws, 1, 1, 2), generator=torch.Generator().manual_seed(1)).double() * 2 - 1
    found = log_density(two_blobs, x.expand(draws, -1, -1, -1), sigmas, [signs])
    spread = found.std().item()
    assert spread > 0.01
    assert found.mean().item() == pytest.approx(exact.item(), abs=4 * spread / math.sqrt(draws))

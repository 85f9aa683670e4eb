"""The variational bound of DDPM against the exact likelihood of Gaussian data, and term by term."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from sfumato.core.rng import SampleRng
from sfumato.families.diffusion.labels import Guided
from sfumato.families.diffusion.objectives.ddpm import DDPM, DDPMConfig
from sfumato.families.diffusion.objectives.ddpm.bound import bound_bits
from sfumato.families.diffusion.objectives.ddpm.schedule import NoiseSchedule

MEAN, STD, ROWS = 0.1, 0.3, 32


def pixels() -> torch.Tensor:
    """Data N(MEAN, STD^2) as 8-bit images in [-1, 1]."""
    draws = MEAN + STD * torch.randn(ROWS, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return ((draws + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1


def exact_bits(x: torch.Tensor) -> float:
    """The true bits per dimension: each pixel's bin under the normal."""
    values, half = x.double().numpy(), 1 / 255
    share = stats.norm.cdf(values + half, MEAN, STD) - stats.norm.cdf(values - half, MEAN, STD)
    return float(-np.log2(share).mean())


def optimal(schedule: NoiseSchedule):  # type: ignore[no-untyped-def]
    """E[x_0 | x_t] of the data."""

    def denoise(xt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        abar = schedule.alpha_bar[t].view(-1, 1, 1, 1).float()
        gain = abar.sqrt() * STD**2 / (abar * STD**2 + 1 - abar)
        return MEAN + gain * (xt - abar.sqrt() * MEAN)

    return denoise


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_the_optimal_denoiser_of_gaussian_data_nearly_reaches_its_likelihood(kind: str) -> None:
    schedule, x = NoiseSchedule(kind, 1000), pixels()
    found = bound_bits(optimal(schedule), x, schedule, 999, SampleRng(1, range(ROWS)))
    truth = exact_bits(x)
    assert found.mean().item() == pytest.approx(truth, abs=0.05)  # an estimate, by one draw of noise a step
    worse = bound_bits(
        lambda x, t: optimal(schedule)(x, t) + 0.05, x, schedule, 999, SampleRng(1, range(ROWS))
    )
    assert (worse > found).all()


def test_the_bound_is_the_sum_of_the_papers_terms() -> None:
    """Eq. 5 with the posterior of eq. 6 and 7, term by term, for a denoiser that always answers 0.2."""
    steps = 12
    schedule, x = NoiseSchedule("linear", steps), pixels()[:4]
    beta = schedule.betas.numpy()
    abar = np.cumprod(1 - beta)
    data = x.double().numpy()
    variance = 1 - abar[-1]
    nats = 0.5 * (variance + abar[-1] * data**2 - 1 - math.log(variance))
    for t in range(1, steps):
        posterior = (1 - abar[t - 1]) / (1 - abar[t]) * beta[t]
        gain = math.sqrt(abar[t - 1]) * beta[t] / (1 - abar[t])  # of x_0 in the posterior's mean
        # KL between normals of variance `posterior` and beta_t
        nats = nats + 0.5 * (posterior / beta[t] - 1 + math.log(beta[t] / posterior))
        nats = nats + (gain * (data - 0.2)) ** 2 / (2 * beta[t])
    std = math.sqrt(beta[0])
    share = stats.norm.cdf(data + 1 / 255, 0.2, std) - stats.norm.cdf(data - 1 / 255, 0.2, std)
    nats = nats - np.log(share.clip(1e-12))
    expected = torch.tensor(nats).flatten(1).mean(dim=1) / math.log(2)
    found = bound_bits(lambda x, t: torch.full_like(x, 0.2), x, schedule, 11, SampleRng(0, range(4)))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_fewer_timesteps_estimate_the_same_sum() -> None:
    schedule, x = NoiseSchedule("cosine", 100), pixels()[:1].expand(512, -1, -1, -1)
    denoise = optimal(schedule)
    whole = bound_bits(denoise, x, schedule, 99, SampleRng(0, range(512)))
    few = bound_bits(denoise, x, schedule, 5, SampleRng(1, range(512)))
    error = 4 * math.hypot(few.std().item(), whole.std().item()) / math.sqrt(512)
    assert few.mean().item() == pytest.approx(whole.mean().item(), abs=error)
    assert few.std() > whole.std()


def test_the_ends_of_the_range_are_open_bins() -> None:
    """A denoiser that is far outside puts all mass into the last bin: those pixels cost nothing."""
    schedule = NoiseSchedule("linear", 2)
    x = torch.ones(1, 1, 2, 2)
    found = bound_bits(lambda x, t: torch.full_like(x, 1.0), x, schedule, 1, SampleRng(0, [0]))
    abar = schedule.alpha_bar[-1].item()
    prior = 0.5 * (abar - abar - math.log1p(-abar)) / math.log(2)
    decoder = found.item() - prior
    spread = 0.5 * ((ratio := (1 - schedule.alpha_bar[0].item()) / (1 - abar)) - 1 - math.log(ratio))
    expected = -math.log2(1 - stats.norm.cdf(-1 / 255 / math.sqrt(schedule.betas[0].item())))
    assert decoder - spread / math.log(2) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_a_network_of_noise_or_v_is_turned_into_its_image(prediction: str) -> None:
    config = DDPMConfig(schedule="cosine", timesteps=50, prediction=prediction)
    schedule, x = NoiseSchedule("cosine", 50), pixels()[:8]

    class Optimal(torch.nn.Module):
        def forward(
            self, xt: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None, return_dict: bool
        ) -> tuple[torch.Tensor]:
            abar = schedule.alpha_bar[t].view(-1, 1, 1, 1).float()
            image = optimal(schedule)(xt, t)
            eps = (xt - abar.sqrt() * image) / (1 - abar).sqrt()
            return (eps if prediction == "epsilon" else abar.sqrt() * eps - (1 - abar).sqrt() * image,)

    found = DDPM(config).bits_per_dim(Guided(Optimal(), None, 1.0, 0), x, 49, SampleRng(0, range(8)))
    expected = bound_bits(
        lambda xt, t: optimal(schedule)(xt, t).clamp(-1, 1), x, schedule, 49, SampleRng(0, range(8))
    )
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-3)

"""EDM against the paper's own derivations, a closed-form flow, and a transcription of its algorithm 2."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import optimize, stats

from sfumato.core.batch import Piece
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng, StreamRng
from sfumato.families.diffusion.guidance.labels import Guided, LabelDropout
from sfumato.families.diffusion.objectives.edm import EDM, EDMConfig, EDMSampling, Preconditioning

ROWS = 4096
MEAN, STD = 0.3, 0.4


class Recorder(torch.nn.Module):
    """Answers with a constant and keeps what it was shown."""

    def __init__(self, answer: float) -> None:
        super().__init__()
        self.answer = answer
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None, return_dict: bool
    ) -> tuple[torch.Tensor]:
        self.seen.append((x, t))
        return (torch.full_like(x, self.answer),)


class GaussianNetwork(torch.nn.Module):
    """The raw network F whose denoiser is the conditional expectation of data N(MEAN, STD^2)."""

    def __init__(self, config: EDMConfig) -> None:
        super().__init__()
        self.data = 0.5 if config.sigma_data is None else config.sigma_data
        self.calls = 0

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None, return_dict: bool
    ) -> tuple[torch.Tensor]:
        self.calls += 1
        sigma2 = torch.exp(8 * t.double())
        total = sigma2 + self.data**2
        noisy = x.double() * total.sqrt()  # undoes c_in
        denoised = (noisy * STD**2 + MEAN * sigma2) / (STD**2 + sigma2)
        out = sigma2.sqrt() * self.data / total.sqrt()
        return (((denoised - self.data**2 / total * noisy) / out).float(),)


def sample(options: EDMSampling, noise: torch.Tensor, rng: SampleRng) -> tuple[torch.Tensor, int]:
    config = EDMConfig()
    network = GaussianNetwork(config)
    images = EDM(config).sample(Guided(network, None, 1.0, 0), noise, options, rng, clip=False)
    return images, network.calls


@pytest.mark.parametrize("sigma_data", [0.5, 0.9])
@pytest.mark.parametrize("sigma", [0.01, 0.3, 1.0, 40.0])
def test_preconditioning_is_what_the_papers_derivation_asks_for(sigma: float, sigma_data: float) -> None:
    c = Preconditioning.at(torch.tensor(sigma, dtype=torch.float64), sigma_data)

    def target_variance(skip: float) -> float:  # eq. 119: of y - skip (y + n)
        return (1 - skip) ** 2 * sigma_data**2 + skip**2 * sigma**2

    best = optimize.minimize_scalar(
        target_variance, bounds=(0, 1), method="bounded", options={"xatol": 1e-10}
    )
    assert c.skip.item() == pytest.approx(best.x, abs=1e-6)
    assert c.out.item() == pytest.approx(math.sqrt(target_variance(best.x)), rel=1e-6)
    assert c.in_.item() ** 2 * (sigma_data**2 + sigma**2) == pytest.approx(1)
    assert c.noise.item() == pytest.approx(0.25 * math.log(sigma))
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2  # table 1, loss weighting
    assert weight * c.out.item() ** 2 == pytest.approx(1)


def test_loss_is_the_weighted_denoising_error() -> None:
    config, network = EDMConfig(sigma_data=0.6), Recorder(0.25)
    y = torch.rand(ROWS, 1, 2, 2) * 2 - 1
    rng = StreamRng([Piece(0, 0, ROWS)], rows_per_stream=ROWS, seed=0, images=0, phase="denoise")
    out = EDM(config).loss(
        {"network": network}, {"image": y}, LabelDropout(None, 0), Progress(0, 0, 1, 1), rng
    )
    shown, t = network.seen[0]
    sigma = torch.exp(4 * t.double()).view(-1, 1, 1, 1)
    x = shown.double() * (sigma**2 + 0.36).sqrt()
    denoised = 0.36 / (sigma**2 + 0.36) * x + sigma * 0.6 / (sigma**2 + 0.36).sqrt() * 0.25
    weight = (sigma**2 + 0.36) / (sigma * 0.6) ** 2
    expected = (weight * (denoised - y) ** 2).mean(dim=(1, 2, 3))
    torch.testing.assert_close(out.loss_B.double(), expected, rtol=2e-3, atol=1e-3)
    log_sigma = sigma.log().flatten().numpy()
    assert stats.kstest((log_sigma + 1.2) / 1.2, "norm").pvalue > 1e-3
    noise = ((x - y) / sigma).flatten().numpy()
    assert stats.kstest(noise, "norm").pvalue > 1e-3
    means = [out.metrics[f"loss_q{q}"].mean().item() for q in range(1, 5)]
    assert np.mean(means) == pytest.approx(out.loss_B.mean().item(), rel=1e-5)


def test_noise_levels_are_equation_five() -> None:
    options = EDMSampling(steps=18)
    i = np.arange(18)
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(options.sigmas()[:-1], expected, rtol=1e-9)
    assert options.sigmas()[-1] == 0


def test_heun_is_the_closed_form_ode_to_second_order() -> None:
    """Along the probability flow of Gaussian data, x - MEAN scales with sqrt(STD^2 + sigma^2)."""
    noise = torch.linspace(-2, 2, 64).view(1, 1, 8, 8)
    exact = MEAN + (80 * noise - MEAN) * STD / math.sqrt(STD**2 + 80**2)
    errors: dict[str, list[float]] = {}
    for sampler, order in (("euler", 1), ("heun", 2)):
        for steps in (16, 32, 64):
            found, calls = sample(EDMSampling(sampler=sampler, steps=steps), noise, SampleRng(0, [0]))
            assert calls == (steps if order == 1 else 2 * steps - 1)
            errors.setdefault(sampler, []).append((found - exact).abs().max().item())
        for coarse, fine in zip(errors[sampler], errors[sampler][1:], strict=False):
            assert coarse / fine > 0.75 * 2**order
    assert errors["heun"][-1] < 5e-3
    assert errors["heun"][-1] < errors["euler"][-1] / 5


def reference_sampler(options: EDMSampling, noise: torch.Tensor, rng: SampleRng) -> torch.Tensor:
    """Algorithm 2, line by line, on the exact denoiser."""

    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        return (x * STD**2 + MEAN * sigma**2) / (STD**2 + sigma**2)

    t, n = options.sigmas(), options.steps
    x = noise * t[0]
    for i in range(n):
        most = math.inf if options.churn_max is None else options.churn_max
        gamma = min(options.churn / n, math.sqrt(2) - 1) if options.churn_min <= t[i] <= most else 0
        if gamma:
            eps = options.churn_noise * rng.normal(*x.shape[1:])
        t_hat = t[i] + gamma * t[i]
        x_hat = x + math.sqrt(t_hat**2 - t[i] ** 2) * eps if gamma else x
        d = (x_hat - denoise(x_hat, t_hat)) / t_hat
        x = x_hat + (t[i + 1] - t_hat) * d
        if t[i + 1]:
            d2 = (x - denoise(x, t[i + 1])) / t[i + 1]
            x = x_hat + (t[i + 1] - t_hat) * (d / 2 + d2 / 2)
    return x


@pytest.mark.parametrize(
    "options",
    [
        EDMSampling(steps=8),
        EDMSampling(steps=8, churn=4),
        EDMSampling(steps=8, churn=40, churn_min=0.05, churn_max=50, churn_noise=1.003),
    ],
    ids=["none", "some", "bounded"],
)
def test_churn_is_algorithm_two(options: EDMSampling) -> None:
    noise = SampleRng(0, range(3)).normal(1, 4, 4)
    found, _ = sample(options, noise, SampleRng(1, range(3)))
    expected = reference_sampler(options, noise, SampleRng(1, range(3)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_churn_keeps_the_distribution_and_changes_the_sample() -> None:
    rng = SampleRng(0, range(64))
    noise = rng.normal(1, 8, 8)
    still, _ = sample(EDMSampling(steps=80), noise, rng)
    stirred, _ = sample(EDMSampling(steps=80, churn=20), noise, rng)
    assert (still - stirred).abs().mean().item() > 0.05
    for images in (still, stirred):
        assert images.mean().item() == pytest.approx(MEAN, abs=0.02)
        assert images.std().item() == pytest.approx(STD, rel=0.03), images.std()


def test_clipping_bounds_every_predicted_image() -> None:
    config = EDMConfig()
    noise = SampleRng(0, range(8)).normal(1, 4, 4)
    wild = Guided(Recorder(3.0), None, 1.0, 0)
    bounded = EDM(config).sample(wild, noise, EDMSampling(steps=5), SampleRng(0, range(8)), clip=True)
    free = EDM(config).sample(wild, noise, EDMSampling(steps=5), SampleRng(0, range(8)), clip=False)
    assert bounded.abs().max().item() <= 1
    assert free.abs().max().item() > 1

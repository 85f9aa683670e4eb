"""The variational bound of DDPM against the exact likelihood of Gaussian data, and term by term."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import special, stats

from sfumato.core.rng import SampleRng
from sfumato.families.diffusion.guidance.labels import Guided
from sfumato.families.diffusion.objectives.ddpm import DDPM, DDPMConfig, DDPMSampling
from sfumato.families.diffusion.objectives.ddpm.bound import Prediction, bound_bits, decoder_nats
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


def fixed(denoise, schedule: NoiseSchedule):  # type: ignore[no-untyped-def]
    """The reverse steps of a denoiser, with the variance that needs no network."""

    def reverse(xt: torch.Tensor, t: torch.Tensor) -> Prediction:
        return Prediction(denoise(xt, t), schedule.fixed_log_variance(t))

    return reverse


def optimal(schedule: NoiseSchedule):  # type: ignore[no-untyped-def]
    """E[x_0 | x_t] of the data."""

    def denoise(xt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        abar = schedule.alpha_bar[t].view(-1, 1, 1, 1).float()
        gain = abar.sqrt() * STD**2 / (abar * STD**2 + 1 - abar)
        return MEAN + gain * (xt - abar.sqrt() * MEAN)

    return denoise


def price_of_the_decoder(schedule: NoiseSchedule, x: torch.Tensor) -> float:
    """Bits per dimension that the authors' variance of p(x_0|x_1) costs beyond that of x_0 given x_1."""
    first, second = schedule.betas[:2].tolist()
    taken = second * first / (first + second - first * second)
    true = STD**2 * first / ((1 - first) * STD**2 + first)
    data = x.double().numpy()
    x1 = math.sqrt(1 - first) * data + math.sqrt(first) * np.random.default_rng(0).normal(size=data.shape)
    guess = MEAN + math.sqrt(1 - first) * true / first * (x1 - math.sqrt(1 - first) * MEAN)
    logs = [
        np.log2(np.diff(stats.norm.cdf([data - 1 / 255, data + 1 / 255], guess, math.sqrt(variance)), axis=0))
        for variance in (true, taken)
    ]
    return float((logs[0] - logs[1]).mean())


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_the_optimal_denoiser_of_gaussian_data_nearly_reaches_its_likelihood(kind: str) -> None:
    schedule, x = NoiseSchedule(kind, 1000), pixels()
    found = bound_bits(fixed(optimal(schedule), schedule), x, schedule, 999, SampleRng(1, range(ROWS)))
    truth = exact_bits(x) + price_of_the_decoder(schedule, x)
    assert found.mean().item() == pytest.approx(truth, abs=0.05)  # an estimate, by one draw of noise a step
    off = fixed(lambda x, t: optimal(schedule)(x, t) + 0.05, schedule)
    worse = bound_bits(off, x, schedule, 999, SampleRng(1, range(ROWS)))
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
    std = math.sqrt((1 - abar[0]) / (1 - abar[1]) * beta[1])
    nats = nats - log_share(data, np.array(0.2), std)
    expected = torch.tensor(nats).flatten(1).mean(dim=1) / math.log(2)
    always = fixed(lambda x, t: torch.full_like(x, 0.2), schedule)
    found = bound_bits(always, x, schedule, 11, SampleRng(0, range(4)))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def log_share(x: np.ndarray, mean: np.ndarray, std: float) -> np.ndarray:
    """The logarithm of what a normal below 1 has within 1/255 of x, or beyond at both ends, by logarithms of
    scipy's distribution function."""
    far, near = ((np.abs(x - mean) + side / 255) / std for side in (1, -1))  # upper tail, by symmetry
    logs = np.stack([stats.norm.logsf(near), stats.norm.logsf(far)])
    closed = special.logsumexp(logs, axis=0, b=np.array([1, -1]).reshape(2, *[1] * far.ndim))
    return np.where(np.abs(x) == 1, logs[0], closed)  # an open bin has all beyond its near side


def authors_bits(schedule: NoiseSchedule, x: np.ndarray, image: np.ndarray) -> np.ndarray:
    """`calc_bpd_loop` of guided-diffusion (Dhariwal & Nichol 2021) with model variance "fixed large", for a
    predicted image that does not depend on x_t, without its approximation of the normal's distribution."""
    betas = schedule.betas.numpy()
    abar = np.cumprod(1.0 - betas)
    abar_prev = np.append(1.0, abar[:-1])
    posterior = betas * (1.0 - abar_prev) / (1.0 - abar)
    log_posterior = np.log(np.append(posterior[1], posterior[1:]))
    log_model = np.log(np.append(posterior[1], betas[1:]))
    coefficient = betas * np.sqrt(abar_prev) / (1.0 - abar)

    def normal_kl(mean1, logvar1, mean2, logvar2):  # type: ignore[no-untyped-def]
        gap = logvar2 - logvar1
        return 0.5 * (-1.0 + gap + np.exp(-gap) + (mean1 - mean2) ** 2 * np.exp(-logvar2))

    vb = normal_kl(np.sqrt(abar[-1]) * x, np.log(1.0 - abar[-1]), 0.0, 0.0)
    for t in reversed(range(len(betas))):
        if t:
            vb = vb + normal_kl(coefficient[t] * x, log_posterior[t], coefficient[t] * image, log_model[t])
            continue
        inv_std = np.exp(-0.5 * log_model[0])
        plus, minus = inv_std * (x - image + 1.0 / 255.0), inv_std * (x - image - 1.0 / 255.0)
        inside = np.log((stats.norm.cdf(plus) - stats.norm.cdf(minus)).clip(min=1e-12))
        last = np.where(x > 0.999, stats.norm.logsf(minus), inside)
        vb = vb - np.where(x < -0.999, stats.norm.logcdf(plus), last)
    return vb.reshape(len(x), -1).mean(axis=1) / np.log(2.0)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("kind", "distance"), [("linear", 0.0), ("cosine", 0.0), ("linear", 0.03)])
def test_the_bound_is_the_authors(kind: str, distance: float) -> None:
    """Within 6 standard deviations of the decoder, where their floor of 1e-12 is not reached."""
    schedule, x = NoiseSchedule(kind, 1000), pixels()[:4]
    image = x + distance
    always = fixed(lambda xt, t: image, schedule)
    found = bound_bits(always, x, schedule, 999, SampleRng(0, range(4)))
    expected = authors_bits(schedule, x.double().numpy(), image.double().numpy())
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-5)


@pytest.mark.parametrize(("kind", "bits"), [("linear", 1.31), ("cosine", 0.74)])
def test_the_decoder_of_an_exact_prediction(kind: str, bits: float) -> None:
    """A bin of the normal whose variance is the posterior's at the paper's t = 2."""
    schedule, x = NoiseSchedule(kind, 1000), torch.zeros(4, 1, 8, 8)
    first, second = schedule.betas[:2].tolist()
    std = math.sqrt(second * first / (first + second - first * second))
    expected = -math.log2(1 - 2 * stats.norm.sf(1 / 255 / std))
    exact = Prediction(x, schedule.fixed_log_variance(torch.zeros(4, dtype=torch.int64)))
    found = decoder_nats(exact, x) / (64 * math.log(2))
    torch.testing.assert_close(found, torch.full((4,), expected), rtol=1e-4, atol=0)
    assert expected == pytest.approx(bits, abs=0.005)


def test_an_impossible_pixel_costs_its_logarithm() -> None:
    """Beyond a probability of 1e-12, in both tails, against scipy's logarithms."""
    image = torch.tensor([0.9, 0.5, -0.5, -0.9, 0.9, -0.9]).view(-1, 1, 1, 1)
    x = (torch.tensor([10, 60, 190, 250, 0, 255]) / 127.5 - 1).view(-1, 1, 1, 1)
    std = 0.03
    found = decoder_nats(Prediction(image, torch.full((1, 1, 1, 1), 2 * math.log(std))), x)
    data, guess = x.double().flatten().numpy(), image.double().flatten().numpy()
    np.testing.assert_allclose(found.numpy(), -log_share(data, guess, std), rtol=1e-5)
    assert found.min() > 100


def test_fewer_timesteps_estimate_the_same_sum() -> None:
    schedule, x = NoiseSchedule("cosine", 100), pixels()[:1].expand(512, -1, -1, -1)
    denoise = fixed(optimal(schedule), schedule)
    whole = bound_bits(denoise, x, schedule, 99, SampleRng(0, range(512)))
    few = bound_bits(denoise, x, schedule, 5, SampleRng(1, range(512)))
    error = 4 * math.hypot(few.std().item(), whole.std().item()) / math.sqrt(512)
    assert few.mean().item() == pytest.approx(whole.mean().item(), abs=error)
    assert few.std() > whole.std()


def test_the_ends_of_the_range_are_open_bins() -> None:
    """A denoiser that is far outside puts all mass into the last bin: those pixels cost nothing."""
    schedule = NoiseSchedule("linear", 2)
    x = torch.ones(1, 1, 2, 2)
    always = fixed(lambda x, t: torch.full_like(x, 1.0), schedule)
    found = bound_bits(always, x, schedule, 1, SampleRng(0, [0]))
    abar = schedule.alpha_bar[-1].item()
    prior = 0.5 * (abar - abar - math.log1p(-abar)) / math.log(2)
    decoder = found.item() - prior
    spread = 0.5 * ((ratio := (1 - schedule.alpha_bar[0].item()) / (1 - abar)) - 1 - math.log(ratio))
    variance = (1 - schedule.alpha_bar[0].item()) / (1 - abar) * schedule.betas[1].item()
    expected = -math.log2(1 - stats.norm.cdf(-1 / 255 / math.sqrt(variance)))
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

    options = DDPMSampling(likelihood_steps=49)
    found = DDPM(config).bits_per_dim(Guided(Optimal(), None, 1.0, 0), x, options, SampleRng(0, range(8)))
    clipped = fixed(lambda xt, t: optimal(schedule)(xt, t).clamp(-1, 1), schedule)
    expected = bound_bits(clipped, x, schedule, 49, SampleRng(0, range(8)))
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-3)

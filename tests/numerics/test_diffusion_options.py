"""Options of DDPM's training against their papers: weightings, zero terminal SNR, learned variances."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from pydantic import ValidationError
from scipy import stats

from sfumato.core.batch import Piece
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng, StreamRng
from sfumato.families.diffusion.guidance.labels import Guided, LabelDropout
from sfumato.families.diffusion.objectives.ddpm import DDPM, DDPMConfig, DDPMSampling
from sfumato.families.diffusion.objectives.ddpm.bound import Prediction, decoder_nats
from sfumato.families.diffusion.objectives.ddpm.schedule import NoiseSchedule, linear_betas
from sfumato.families.diffusion.pipeline import Guidance, denoise, guided_output

ROWS, T = 512, 20


class Fixed(torch.nn.Module):
    """Answers with tanh of what it is shown and, second, with `raw`, a parameter; keeps what it was shown."""

    def __init__(self, raw: float | None = None) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(1.0))
        self.raw = None if raw is None else torch.nn.Parameter(torch.tensor(raw))
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None, return_dict: bool
    ) -> tuple[torch.Tensor]:
        self.seen.append((x, t))
        first = self.scale * torch.tanh(x)
        return (first if self.raw is None else torch.cat([first, self.raw * torch.ones_like(x)], dim=1),)


def pixels() -> torch.Tensor:
    levels = torch.randint(256, (ROWS, 1, 2, 2), generator=torch.Generator().manual_seed(0))
    return levels / 127.5 - 1


def trained(network: Fixed, **settings: Any) -> tuple[torch.Tensor, dict[str, np.ndarray]]:
    """The loss, and what it was computed from in float64: x0, xt, eps, t, abar."""
    config = DDPMConfig.model_validate({"timesteps": T, "schedule": "linear", **settings})
    x0 = pixels()
    rng = StreamRng([Piece(0, 0, ROWS)], rows_per_stream=ROWS, seed=0, images=0, phase="denoise")
    out = DDPM(config).loss(
        {"network": network}, {"image": x0}, LabelDropout(None, 0), Progress(0, 0, 1, 1), rng
    )
    xt, t = network.seen[-1]
    abar = np.cumprod(1 - np.linspace(0.1 / T, min(20 / T, 0.999), T))
    known = {"x0": x0.double().numpy(), "xt": xt.double().numpy(), "t": t.numpy(), "abar": abar}
    level = abar[known["t"]].reshape(-1, 1, 1, 1)
    known["eps"] = (known["xt"] - np.sqrt(level) * known["x0"]) / np.sqrt(1 - level)
    return out.loss_B, known


def image_error(known: dict[str, np.ndarray], prediction: str) -> np.ndarray:
    """Mean squared error of the image that tanh(x_t) stands for, [B]."""
    level = known["abar"][known["t"]].reshape(-1, 1, 1, 1)
    answer, xt = np.tanh(known["xt"]), known["xt"]
    if prediction == "epsilon":
        image = (xt - np.sqrt(1 - level) * answer) / np.sqrt(level)
    else:
        image = np.sqrt(level) * xt - np.sqrt(1 - level) * answer
    return ((image - known["x0"]) ** 2).mean(axis=(1, 2, 3))  # type: ignore[no-any-return]


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize(
    ("weighting", "of_image"),
    [
        ("min_snr", lambda snr: np.minimum(snr, 5.0)),  # Hang et al. 2023, sec. 3.4
        ({"kind": "min_snr", "gamma": 1.0}, lambda snr: np.minimum(snr, 1.0)),
        ("p2", lambda snr: snr / (1 + snr)),  # Choi et al. 2022, eq. 8, on L_simple of the noise
        ({"kind": "p2", "gamma": 0.5, "k": 2.0}, lambda snr: snr / np.sqrt(2 + snr)),
    ],
)
def test_weightings_are_the_papers_on_the_image(weighting: Any, of_image: Any, prediction: str) -> None:
    found, known = trained(Fixed(), weighting=weighting, prediction=prediction)
    snr = (known["abar"] / (1 - known["abar"]))[known["t"]]
    expected = of_image(snr) * image_error(known, prediction)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=2e-3, atol=1e-5)


def test_without_a_weighting_no_bit_changes() -> None:
    """The loss of Ho et al. 2020, eq. 14, as it was before there were weightings."""
    network = Fixed()
    found, known = trained(network, prediction="epsilon")
    rng = StreamRng([Piece(0, 0, ROWS)], rows_per_stream=ROWS, seed=0, images=0, phase="denoise")
    rng.integers(T)
    eps = rng.normal(1, 2, 2)
    assert torch.equal(found, (torch.tanh(network.seen[0][0]) - eps).square().mean(dim=(1, 2, 3)))
    assert found.mean() > 0 and len(known["t"]) == ROWS


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "cosine"])
def test_zero_terminal_snr_is_algorithm_one(kind: str) -> None:
    schedule = NoiseSchedule(kind, 1000, zero_terminal_snr=True)
    assert schedule.alpha_bar[-1] == 0 and schedule.betas[-1] == 1
    before = NoiseSchedule(kind, 1000)
    torch.testing.assert_close(schedule.alpha_bar[0], before.alpha_bar[0], rtol=1e-12, atol=0)
    theirs = torch.cumprod(1 - rescale_zero_terminal_snr(before.betas.clone()), dim=0)
    torch.testing.assert_close(schedule.alpha_bar, theirs, rtol=1e-9, atol=1e-12)
    assert linear_betas(1000)[-1] == pytest.approx(0.02)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmsolver++"])
@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_samplers_start_from_noise_alone(sampler: str, kind: str) -> None:
    """At the last timestep, where the network knows nothing of x_0: data N(0.8, 0.4^2) come out."""
    config = DDPMConfig.model_validate({"zero_terminal_snr": True, "schedule": kind})
    abar = NoiseSchedule(kind, 1000, zero_terminal_snr=True).alpha_bar
    asked = []

    class Optimal(torch.nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor, *_: object, **__: object) -> tuple[torch.Tensor]:
            asked.append(int(t))
            level = abar[t].float()
            residual = (x - level.sqrt() * 0.8) / (level * 0.16 + 1 - level)
            x0 = 0.8 + level.sqrt() * 0.16 * residual
            return (level.sqrt() * (1 - level).sqrt() * residual - (1 - level).sqrt() * x0,)

    options, rng = DDPMSampling.model_validate({"sampler": sampler, "steps": 60}), SampleRng(0, range(64))
    scheduler = options.sampler.scheduler(config.levels, clip=False)
    x = denoise(Optimal(), scheduler, rng.normal(1, 8, 8), steps=60, generators=rng.generators)
    assert asked[0] == 999
    assert x.mean().item() == pytest.approx(0.8, abs=0.03)
    assert x.std().item() == pytest.approx(0.4, rel=0.2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"zero_terminal_snr": True, "prediction": "epsilon"}, "use prediction=v"),
        ({"zero_terminal_snr": True, "weighting": "min_snr"}, "use weighting=plain"),
        ({"bound_weight": 0.1}, "no effect with variance=fixed"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DDPMConfig.model_validate(settings)


def hybrid(known: dict[str, np.ndarray], raw: float, prediction: str) -> tuple[np.ndarray, np.ndarray]:
    """L_simple and T L_t in bits per dimension, as improved-diffusion has them (learned range)."""
    betas = np.linspace(0.1 / T, min(20 / T, 0.999), T)
    abar, t = known["abar"], known["t"]
    prev = np.append(1.0, abar[:-1])
    posterior = betas * (1 - prev) / (1 - abar)
    shortest = np.log(np.append(posterior[1], posterior[1:]))
    share = (raw + 1) / 2
    log_model = share * np.log(betas) + (1 - share) * shortest

    def rows(values: np.ndarray) -> np.ndarray:
        return values[t].reshape(-1, 1, 1, 1)

    answer, level = np.tanh(known["xt"]), rows(abar)
    target = known["eps"]
    image = (known["xt"] - np.sqrt(1 - level) * answer) / np.sqrt(level)
    if prediction == "v":
        target = np.sqrt(level) * known["eps"] - np.sqrt(1 - level) * known["x0"]
        image = np.sqrt(level) * known["xt"] - np.sqrt(1 - level) * answer
    gap = rows(betas * np.sqrt(prev) / (1 - abar)) * (known["x0"] - image)
    spread = rows(log_model) - rows(shortest)
    kl = 0.5 * (-1 + spread + np.exp(-spread) + gap**2 * np.exp(-rows(log_model)))
    inv_std = np.exp(-0.5 * rows(log_model))
    plus, minus = (inv_std * (known["x0"] - image + side / 255) for side in (1, -1))
    far, near = (inv_std * (np.abs(known["x0"] - image) + side / 255) for side in (1, -1))
    outer = stats.norm.logsf(far) - stats.norm.logsf(near)  # in the upper tail, by symmetry
    log_p = stats.norm.logsf(near) + np.log1p(-np.exp(outer))
    log_p = np.where(known["x0"] > 0.999, stats.norm.logsf(minus), log_p)
    log_p = np.where(known["x0"] < -0.999, stats.norm.logcdf(plus), log_p)
    nats = np.where(t.reshape(-1, 1, 1, 1) == 0, -log_p, kl).mean(axis=(1, 2, 3))
    return ((answer - target) ** 2).mean(axis=(1, 2, 3)), T * nats / math.log(2)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("raw", [-0.9, 0.0, 1.3])
def test_a_learned_variance_has_the_hybrid_loss(raw: float, prediction: str) -> None:
    network = Fixed(raw)
    found, known = trained(network, variance="learned", bound_weight=0.01, prediction=prediction)
    simple, bound = hybrid(known, raw, prediction)
    np.testing.assert_allclose(found.detach().numpy(), simple + 0.01 * bound, rtol=1e-2)
    found.mean().backward()
    step = 1e-4
    _, higher = hybrid(known, raw + step, prediction)
    _, lower = hybrid(known, raw - step, prediction)
    assert network.raw is not None and network.raw.grad is not None
    slope = 0.01 * ((higher - lower) / (2 * step)).mean()
    assert network.raw.grad.item() == pytest.approx(slope, rel=2e-2)
    plain = Fixed()
    trained(plain, prediction=prediction)[0].mean().backward()
    assert plain.scale.grad is not None and network.scale.grad is not None
    torch.testing.assert_close(network.scale.grad, plain.scale.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("steps", [T, 6])
def test_ancestral_steps_take_the_learned_variance(steps: int) -> None:
    """Nichol & Dhariwal 2021, eq. 15, over the timesteps of the trajectory; the last step adds no noise."""
    config = DDPMConfig(timesteps=T, schedule="linear", prediction="epsilon", variance="learned")
    options = DDPMSampling(sampler="ddpm", steps=steps)
    network, rng = Fixed(0.6), SampleRng(0, range(3))
    found = DDPM(config).sample(Guided(network, None, 1.0, 0), rng.normal(1, 2, 2), options, rng, clip=False)
    again, abar = SampleRng(0, range(3)), NoiseSchedule("linear", T).alpha_bar.numpy()
    x = again.normal(1, 2, 2).double().numpy()
    times = [int(t) for _, t in network.seen]
    assert len(times) == steps and times[0] == T - 1
    for t, before in zip(times, [*times[1:], None], strict=True):
        now, then = abar[t], 1.0 if before is None else abar[before]
        beta = 1 - now / then
        image = (x - math.sqrt(1 - now) * np.tanh(x)) / math.sqrt(now)
        x = (math.sqrt(then) * beta * image + math.sqrt(now / then) * (1 - then) * x) / (1 - now)
        if before is not None:
            log_variance = 0.8 * math.log(beta) + 0.2 * math.log(beta * (1 - then) / (1 - now))
            x = x + math.exp(log_variance / 2) * again.normal(1, 2, 2).double().numpy()
    np.testing.assert_allclose(found.detach().numpy(), x, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("sampler", ["ddim", "dpmsolver++"])
def test_other_samplers_leave_the_variance_out(sampler: str) -> None:
    options = DDPMSampling.model_validate({"sampler": sampler, "steps": 5})
    drawn = []
    for variance, raw in (("fixed", None), ("learned", 0.3)):
        config, rng = DDPMConfig(timesteps=T, variance=variance), SampleRng(0, range(3))
        guided = Guided(Fixed(raw), None, 1.0, 0)
        drawn.append(DDPM(config).sample(guided, rng.normal(1, 2, 2), options, rng, clip=True))
    assert torch.equal(*drawn)


def test_the_variance_is_not_guided() -> None:
    class Labelled(torch.nn.Module):
        def forward(
            self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor, return_dict: bool
        ) -> tuple[torch.Tensor]:
            shown = labels.view(-1, 1, 1, 1).float()
            return (torch.cat([x + shown, x * 0 + shown], dim=1),)

    x, labels = torch.randn(2, 1, 2, 2), torch.tensor([0, 1])
    found = guided_output(Labelled(), x, torch.tensor(3), labels, guidance=Guidance(3.0), null=4)
    torch.testing.assert_close(found[:, :1], x + 4 + 3 * (labels.view(-1, 1, 1, 1) - 4))
    torch.testing.assert_close(found[:, 1:], labels.view(-1, 1, 1, 1).expand(2, 1, 2, 2).float())


def test_the_bound_takes_the_learned_variance() -> None:
    """A raw variance of 1 is beta_t, like a fixed one, but for the decoder's."""
    x, schedule, first = pixels()[:32], NoiseSchedule("cosine", T), torch.zeros(32, dtype=torch.int64)
    found = []
    for raw in (None, 1.0):
        config = DDPMConfig(timesteps=T, variance="fixed" if raw is None else "learned")
        options, rng = DDPMSampling(likelihood_steps=T - 1), SampleRng(0, range(32))
        bits = DDPM(config).bits_per_dim(Guided(Fixed(raw), None, 1.0, 0), x, options, rng)
        found.append(bits.detach())
    x1 = schedule.add_noise(x, SampleRng(0, range(32)).normal(1, 2, 2), first)
    image = schedule.x0_from_velocity(x1, torch.tanh(x1), first).clamp(-1, 1)
    decoder = [
        decoder_nats(Prediction(image, variance), x)
        for variance in (schedule.fixed_log_variance(first), schedule.betas[:1].log().view(1, 1, 1, 1))
    ]
    expected = (decoder[1] - decoder[0]) / (4 * math.log(2))
    assert expected.abs().max() > 1e-2
    torch.testing.assert_close(found[1] - found[0], expected, rtol=1e-3, atol=1e-3)

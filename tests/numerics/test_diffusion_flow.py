"""Rectified flow against straight paths, a closed-form flow, and diffusers' scheduler."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from scipy import stats

from sfumato.core.batch import Piece
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng, StreamRng
from sfumato.families.diffusion.guidance.labels import Guided, LabelDropout
from sfumato.families.diffusion.objectives.rectified_flow import (
    RectifiedFlow,
    RectifiedFlowConfig,
    RectifiedFlowSampling,
)
from sfumato.families.diffusion.trajectory import couplings

ROWS = 4096
MEAN, STD = 0.3, 0.4


class Velocity(torch.nn.Module):
    """A network of this velocity; t arrives in thousandths. Keeps what it was shown."""

    def __init__(self, velocity) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.velocity = velocity
        self.seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]] = []

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None, return_dict: bool
    ) -> tuple[torch.Tensor]:
        self.seen.append((x, t, labels))
        return (self.velocity(x, t / 1000),)


def gaussian_velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """E[eps - x_0 | x_t] for data N(MEAN, STD^2)."""
    variance = (1 - t) ** 2 * STD**2 + t**2
    return -MEAN + (t - (1 - t) * STD**2) / variance * (x - (1 - t) * MEAN)


def draw(
    velocity, options: RectifiedFlowSampling, noise: torch.Tensor, *, clip: bool = False
) -> torch.Tensor:  # type: ignore[no-untyped-def]
    guided = Guided(Velocity(velocity), None, 1.0, 0)
    rng = SampleRng(0, range(len(noise)))
    return RectifiedFlow(RectifiedFlowConfig()).sample(guided, noise, options, rng, clip=clip)


@pytest.mark.parametrize(
    "config",
    [RectifiedFlowConfig(times="uniform"), RectifiedFlowConfig(logit_mean=0.5, logit_std=1.5)],
    ids=lambda c: c.times,
)
def test_loss_regresses_the_velocity_of_a_straight_path(config: RectifiedFlowConfig) -> None:
    network = Velocity(lambda x, t: torch.full_like(x, 0.25))
    x0 = torch.rand(ROWS, 1, 2, 2) * 2 - 1
    rng = StreamRng([Piece(0, 0, ROWS)], rows_per_stream=ROWS, seed=0, images=0, phase="flow")
    progress = Progress(0, 0, 1, 1)
    out = RectifiedFlow(config).loss(
        {"network": network}, {"image": x0}, LabelDropout(None, 0), progress, rng
    )
    xt, shown, labels = network.seen[0]
    assert labels is None
    t = (shown.double() / 1000).view(-1, 1, 1, 1)
    eps = (xt.double() - (1 - t) * x0) / t
    fine = t.flatten() > 0.01  # elsewhere the noise cannot be told from x_t in float32
    expected = ((0.25 - (eps - x0)) ** 2).mean(dim=(1, 2, 3))
    torch.testing.assert_close(out.loss_B.double()[fine], expected[fine], rtol=2e-3, atol=2e-3)
    times = t.flatten().numpy()
    if config.times == "uniform":
        assert stats.kstest(times, "uniform").pvalue > 1e-3
    else:
        logits = torch.logit(t.flatten()).numpy()
        assert stats.kstest((logits - 0.5) / 1.5, "norm").pvalue > 1e-3
    means = [out.metrics[f"loss_q{quarter}"].mean().item() for quarter in range(1, 5)]
    assert sum(means) / 4 == pytest.approx(out.loss_B.mean().item(), rel=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_a_straight_path_is_followed_exactly(sampler: str, steps: int) -> None:
    """All data at one point: every path is straight, and one Euler step is as good as many."""
    point = torch.tensor([0.7, -0.2, 0.1, 0.9]).view(1, 1, 2, 2)
    noise = SampleRng(0, range(3)).normal(1, 2, 2)
    found = draw(lambda x, t: (x - point) / t, RectifiedFlowSampling(sampler=sampler, steps=steps), noise)
    torch.testing.assert_close(found, point.expand_as(noise), rtol=0, atol=2e-6)


def test_solvers_converge_to_the_closed_form_flow() -> None:
    """Gaussian data: the flow keeps z in x_t = (1 - t) MEAN + z sqrt((1 - t)^2 STD^2 + t^2)."""
    noise = torch.linspace(-2, 2, 64, dtype=torch.float64).view(1, 1, 8, 8)
    exact = MEAN + STD * noise
    errors = {}
    for sampler, order in (("euler", 1), ("heun", 2)):
        found = [
            (draw(gaussian_velocity, RectifiedFlowSampling(sampler=sampler, steps=steps), noise) - exact)
            .abs()
            .max()
            .item()
            for steps in (16, 32, 64)
        ]
        assert found[0] / found[1] > 0.75 * 2**order
        assert found[1] / found[2] > 0.75 * 2**order
        errors[sampler] = found[-1]
    assert errors["heun"] < 1e-3
    assert errors["heun"] < errors["euler"] / 5


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_is_the_scheduler_of_diffusers(shift: float) -> None:
    theirs = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
    steps = 6
    theirs.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
    options = RectifiedFlowSampling(sampler="euler", steps=steps, shift=shift)
    torch.testing.assert_close(theirs.sigmas, torch.tensor(options.times()), rtol=1e-5, atol=1e-6)
    noise = SampleRng(0, range(2)).normal(1, 4, 4)
    x = noise
    for t, sigma in zip(theirs.timesteps, theirs.sigmas, strict=False):
        x = theirs.step(gaussian_velocity(x, sigma), t, x).prev_sample
    torch.testing.assert_close(draw(gaussian_velocity, options, noise), x, rtol=1e-4, atol=1e-5)


def test_clipping_bounds_the_image_and_changes_nothing_inside() -> None:
    noise = SampleRng(0, range(4)).normal(1, 4, 4)
    options = RectifiedFlowSampling(steps=5)
    wild = draw(lambda x, t: x * 0 + 3, options, noise, clip=True)
    assert wild.abs().max().item() <= 1 + 1e-6
    inside = [draw(lambda x, t: (x - 0.5) / t, options, noise, clip=clip) for clip in (True, False)]
    torch.testing.assert_close(*inside, rtol=0, atol=1e-5)


def test_guidance_mixes_the_two_velocities() -> None:
    """v = v_null + w (v_class - v_null) (Ho & Salimans 2022, eq. 6), at every step."""

    class Labelled(torch.nn.Module):
        def forward(
            self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor, return_dict: bool
        ) -> tuple[torch.Tensor]:
            return (torch.zeros_like(x) + torch.where(labels == 10, -0.1, labels / 10.0).view(-1, 1, 1, 1),)

    noise = torch.zeros(2, 1, 2, 2)
    options = RectifiedFlowSampling(sampler="euler", steps=4)
    guided = Guided(Labelled(), torch.tensor([1, 4]), 2.5, 10)
    rng = SampleRng(0, range(2))
    found = RectifiedFlow(RectifiedFlowConfig()).sample(guided, noise, options, rng, clip=False)
    for row, label in enumerate((1, 4)):
        velocity = -0.1 + 2.5 * (label / 10 + 0.1)
        assert found[row].mean().item() == pytest.approx(-velocity, abs=1e-6)
    assert math.isclose(found[0].std().item(), 0.0, abs_tol=1e-6)


def test_training_times_are_shifted_as_sampling_times_are() -> None:
    """Esser et al. 2024, eq. 23: the network sees t' with t' / (1 - t') = shift t / (1 - t)."""
    seen: list[torch.Tensor] = []

    class Seen(torch.nn.Module):
        def forward(
            self, x: torch.Tensor, t: torch.Tensor, labels: None, return_dict: bool
        ) -> tuple[torch.Tensor]:
            seen.append(t / 1000)
            return (torch.zeros_like(x),)

    for shift in (1.0, 3.0):
        rng = StreamRng([Piece(0, 0, 50)], rows_per_stream=50, seed=1, images=0, phase="flow")
        batch = {"image": torch.zeros(50, 1, 2, 2)}
        objective = RectifiedFlow(RectifiedFlowConfig(shift=shift))
        objective.loss({"network": Seen()}, batch, LabelDropout(None, 0), Progress(0, 0, 1, 1), rng)
    plain, shifted = seen
    torch.testing.assert_close(shifted / (1 - shifted), 3 * plain / (1 - plain), rtol=1e-3, atol=1e-5)


def mean_loss(config: RectifiedFlowConfig, answer, x0: torch.Tensor) -> tuple[torch.Tensor, Velocity]:  # type: ignore[no-untyped-def]
    network, rows = Velocity(answer), len(x0)
    rng = StreamRng([Piece(0, 0, rows)], rows_per_stream=rows, seed=0, images=0, phase="flow")
    batch = {"image": x0}
    out = RectifiedFlow(config).loss(
        {"network": network}, batch, LabelDropout(None, 0), Progress(0, 0, 1, 1), rng
    )
    return out.loss_B, network


def test_an_image_is_learnt_by_the_error_of_its_velocity() -> None:
    """JiT: ||v_theta - v||^2 with v = (x_t - x) / t is ||x_theta - x||^2 / t^2, t no smaller than 0.05."""
    x0 = torch.rand(512, 1, 2, 2) * 2 - 1
    loss, network = mean_loss(
        RectifiedFlowConfig(times="uniform", predict="image"), lambda x, t: torch.full_like(x, 0.25), x0
    )
    t = network.seen[0][1] / 1000
    expected = (0.25 - x0).square().mean(dim=(1, 2, 3)) / t.clamp(min=0.05) ** 2
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("clip", [False, True])
def test_a_model_of_images_draws_as_one_of_velocities(clip: bool) -> None:
    noise = SampleRng(0, range(3)).normal(1, 2, 2)
    options = RectifiedFlowSampling(sampler="heun", steps=6)

    def image(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x - t * gaussian_velocity(x, t)

    guided = Guided(Velocity(image), None, 1.0, 0)
    of_images = RectifiedFlow(RectifiedFlowConfig(predict="image"))
    found = of_images.sample(guided, noise, options, SampleRng(0, range(3)), clip=clip)
    torch.testing.assert_close(
        found, draw(gaussian_velocity, options, noise, clip=clip), rtol=1e-5, atol=1e-5
    )
    sigma, x = torch.tensor([0.5, 2.0, 9.0]), torch.randn(3, 1, 2, 2)
    torch.testing.assert_close(
        of_images.image_in(lambda y, t: image(y, (t / 1000).view(-1, 1, 1, 1)), x, sigma),
        RectifiedFlow(RectifiedFlowConfig()).image_in(
            lambda y, t: gaussian_velocity(y, (t / 1000).view(-1, 1, 1, 1)), x, sigma
        ),
        rtol=1e-5,
        atol=1e-5,
    )


def test_contrast_subtracts_the_distance_to_the_neighbour() -> None:
    x0 = torch.rand(6, 1, 2, 2) * 2 - 1
    plain, network = mean_loss(RectifiedFlowConfig(times="uniform"), lambda x, t: torch.zeros_like(x), x0)
    found, _ = mean_loss(
        RectifiedFlowConfig(times="uniform", contrast=0.05), lambda x, t: torch.zeros_like(x), x0
    )
    xt, t = network.seen[0][0], (network.seen[0][1] / 1000).view(-1, 1, 1, 1)
    velocity = (xt - x0) / t
    for row, other in enumerate((1, 0, 3, 2, 5, 4)):
        assert found[row].item() == pytest.approx(
            plain[row].item() - 0.05 * velocity[other].square().mean().item(), rel=1e-4
        )
    alone, _ = mean_loss(RectifiedFlowConfig(contrast=0.05), lambda x, t: torch.zeros_like(x), x0[:1])
    assert torch.isfinite(alone).all()


def test_optimal_coupling_is_the_shortest_of_all_assignments() -> None:
    x0, eps = torch.randn(5, 1, 2, 2), torch.randn(5, 1, 2, 2)

    def length(order: tuple[int, ...]) -> float:
        return (x0 - eps[list(order)]).square().sum().item()

    best = min(itertools.permutations(range(5)), key=length)
    assert torch.equal(couplings.nearest(x0, eps), eps[list(best)])
    _, network = mean_loss(
        RectifiedFlowConfig(times="uniform", coupling="optimal"), lambda x, t: torch.zeros_like(x), x0
    )
    _, drawn = mean_loss(RectifiedFlowConfig(times="uniform"), lambda x, t: torch.zeros_like(x), x0)

    def noises(seen) -> torch.Tensor:  # type: ignore[no-untyped-def]
        xt, t = seen[0], (seen[1] / 1000).view(-1, 1, 1, 1)
        return (xt - (1 - t) * x0) / t

    found, before = noises(network.seen[0]), noises(drawn.seen[0])
    torch.testing.assert_close(
        found.flatten().sort().values, before.flatten().sort().values, rtol=1e-3, atol=1e-3
    )
    assert (x0 - found).square().sum() < (x0 - before).square().sum()


@pytest.mark.parametrize("diffusion", [0.5, 2.0])
def test_the_stochastic_equation_has_the_densities_of_the_flow(diffusion: float) -> None:
    """Gaussian data come out Gaussian, whatever the noise on the way; the first noise is forgotten."""
    rows = 4000
    noise = SampleRng(0, range(rows)).normal(1, 1, 1)
    options = RectifiedFlowSampling(sampler="euler", steps=60, diffusion=diffusion)
    found = draw(gaussian_velocity, options, noise).flatten().numpy()
    assert found.mean() == pytest.approx(MEAN, abs=0.03)
    assert found.std() == pytest.approx(STD, rel=0.06)
    flow = draw(gaussian_velocity, RectifiedFlowSampling(sampler="euler", steps=60), noise).flatten().numpy()
    assert stats.pearsonr(flow, noise.flatten().numpy()).statistic > 0.999
    assert stats.pearsonr(found, noise.flatten().numpy()).statistic < 0.9
    assert "adds noise" in options.adds_noise
    with pytest.raises(ValueError, match="sampler=euler"):
        RectifiedFlowSampling(diffusion=1.0)

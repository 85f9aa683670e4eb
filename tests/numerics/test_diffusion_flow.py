"""Rectified flow against straight paths, a closed-form flow, and diffusers' scheduler."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from scipy import stats

from sfumato.core.batch import Piece
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng, StreamRng
from sfumato.families.diffusion.labels import Guided, LabelDropout
from sfumato.families.diffusion.objectives.rectified_flow import (
    RectifiedFlow,
    RectifiedFlowConfig,
    RectifiedFlowSampling,
)

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

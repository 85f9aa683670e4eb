"""Diffusion against closed forms and against diffusers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from sfumato.core.rng import SampleRng
from sfumato.families.diffusion.objectives.ddpm import DDPMConfig, DDPMSampling
from sfumato.families.diffusion.objectives.ddpm.schedule import NoiseSchedule
from sfumato.families.diffusion.pipeline import Guidance, denoise, guided_output

KINDS = ["linear", "cosine"]
ALL_SAMPLERS = [
    DDPMSampling(sampler="ddpm", steps=500),
    DDPMSampling(sampler="ddim", steps=250),
    DDPMSampling(sampler="ddim", steps=500, eta=1.0),
    DDPMSampling(sampler="dpmsolver++", steps=50),
    DDPMSampling(sampler={"kind": "sde-dpmsolver++", "order": 3}, steps=250),
    DDPMSampling(sampler="unipc", steps=50),
]


@pytest.mark.parametrize("timesteps", [20, 1000])
@pytest.mark.parametrize("kind", [*KINDS, "scaled_linear"])
def test_schedule_is_the_one_diffusers_samples_with(kind: str, timesteps: int) -> None:
    ours = NoiseSchedule(kind, timesteps).alpha_bar
    for sampler in ("ddpm", "ddim", "dpmsolver++"):
        objective = DDPMConfig(schedule=kind, timesteps=timesteps)
        theirs = (
            DDPMSampling(sampler=sampler)
            .sampler.scheduler(objective.levels, clip=True)
            .alphas_cumprod.double()
        )
        torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=1e-7)


def test_linear_schedule_is_the_papers() -> None:
    betas = np.linspace(1e-4, 0.02, 1000)
    schedule = NoiseSchedule("linear", 1000)
    np.testing.assert_allclose(schedule.alpha_bar.numpy(), np.cumprod(1 - betas), rtol=1e-12)
    # Ho et al. 2020, sec. 4: the schedule ends with a Kullback-Leibler divergence of about 1e-5 bits a value.
    assert schedule.alpha_bar[-1] < 1e-4


def test_scaled_linear_schedule_is_stable_diffusions() -> None:
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    found = NoiseSchedule("scaled_linear", 1000).alpha_bar.numpy()
    np.testing.assert_allclose(found, np.cumprod(1 - betas), rtol=1e-12)


def test_linear_schedule_keeps_its_end_for_another_number_of_steps() -> None:
    ends = [NoiseSchedule("linear", steps).alpha_bar[-1].log().item() for steps in (250, 1000, 4000)]
    assert max(ends) - min(ends) < 0.5


def test_cosine_schedule_is_the_papers() -> None:
    def f(t: float) -> float:
        return math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2

    expected = [f(t) / f(0) for t in range(1, 1000)]
    np.testing.assert_allclose(NoiseSchedule("cosine", 1000).alpha_bar[:-1].numpy(), expected, rtol=1e-9)
    assert NoiseSchedule("cosine", 1000).betas[-1] == 0.999


@pytest.mark.parametrize("kind", KINDS)
def test_forward_process_has_the_papers_moments(kind: str) -> None:
    schedule, rows = NoiseSchedule(kind, 100), 40_000
    x0 = torch.full((rows, 1, 1, 1), 0.7)
    eps = torch.randn(rows, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    for t in (0, 10, 50, 99):
        x = schedule.add_noise(x0, eps, torch.full((rows,), t))
        abar = schedule.alpha_bar[t].item()
        sigma = math.sqrt(1 - abar)
        assert x.mean().item() == pytest.approx(0.7 * math.sqrt(abar), abs=5 * sigma / math.sqrt(rows))
        assert x.std().item() == pytest.approx(sigma, rel=5 / math.sqrt(2 * rows))


@pytest.mark.parametrize("kind", KINDS)
def test_noise_velocity_and_conversions(kind: str) -> None:
    schedule = NoiseSchedule(kind, 1000)
    generator = torch.Generator().manual_seed(1)
    x0, eps = (torch.randn(64, 3, 4, 4, generator=generator) for _ in range(2))
    t = torch.randint(900, (64,), generator=generator)  # beyond, x_0 from the noise is badly conditioned
    xt, v = schedule.add_noise(x0, eps, t), schedule.velocity(x0, eps, t)
    theirs = DDPMSampling(sampler="ddpm").sampler.scheduler(DDPMConfig(schedule=kind).levels, clip=True)
    torch.testing.assert_close(xt, theirs.add_noise(x0, eps, t), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(v, theirs.get_velocity(x0, eps, t), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(schedule.x0_from_velocity(xt, v, t), x0, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(schedule.epsilon_from_velocity(xt, v, t), eps, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(schedule.x0_from_epsilon(xt, eps, t), x0, rtol=1e-3, atol=1e-4)


class GaussianDenoiser(torch.nn.Module):
    """The optimal network for data N(mean, std^2): the conditional expectation of its target given x_t."""

    def __init__(self, objective: DDPMConfig, mean: float, std: float) -> None:
        super().__init__()
        self.prediction, self.mean, self.variance = objective.prediction, mean, std**2
        self.alpha_bar = NoiseSchedule(objective.schedule, objective.timesteps).alpha_bar

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None, return_dict: bool
    ) -> tuple[torch.Tensor]:
        abar = self.alpha_bar[t].float()
        residual = (x - abar.sqrt() * self.mean) / (abar * self.variance + 1 - abar)
        x0 = self.mean + abar.sqrt() * self.variance * residual
        eps = (1 - abar).sqrt() * residual
        return (eps if self.prediction == "epsilon" else abar.sqrt() * eps - (1 - abar).sqrt() * x0,)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampling", ALL_SAMPLERS, ids=lambda s: f"{s.sampler}-{s.steps}-eta{s.eta:g}")
def test_samplers_reach_a_gaussian(sampling: DDPMSampling, kind: str, prediction: str) -> None:
    mean, std, rows = 0.3, 0.4, 32
    objective = DDPMConfig(schedule=kind, prediction=prediction, timesteps=500)
    rng = SampleRng(0, range(rows))
    x = denoise(
        GaussianDenoiser(objective, mean, std),
        sampling.sampler.scheduler(objective.levels, clip=False),
        rng.normal(1, 16, 16),
        steps=sampling.steps,
        generators=rng.generators,
        eta=sampling.eta,
    )
    assert x.mean().item() == pytest.approx(mean, abs=0.02)
    assert x.std().item() == pytest.approx(std, rel=0.03)


def test_ddim_is_the_closed_form_ode() -> None:
    """Without noise, x_T maps to mean + std * z along the probability flow: the order of values is kept."""
    objective = DDPMConfig(schedule="cosine", prediction="v")
    sampling = DDPMSampling(sampler="ddim", steps=500)
    z = torch.linspace(-2, 2, 64).view(1, 1, 8, 8)
    model, scheduler = (
        GaussianDenoiser(objective, 0.3, 0.4),
        sampling.sampler.scheduler(objective.levels, clip=False),
    )
    x = denoise(model, scheduler, z, steps=500, generators=None)
    torch.testing.assert_close(x, 0.3 + 0.4 * z, rtol=0, atol=5e-3)


def test_ddim_takes_the_noise_of_the_clipped_image() -> None:
    """Song et al. 2021, eq. 12 with sigma 0; the noise is what is left of x beside the clipped x0, as guided
    predictions, which often lie outside [-1, 1], need it."""
    objective = DDPMConfig(schedule="cosine", prediction="v")
    scheduler = DDPMSampling(sampler="ddim", steps=4).sampler.scheduler(objective.levels, clip=True)
    z = 3 * torch.linspace(-1, 1, 16).view(1, 1, 4, 4)

    def velocity(x: torch.Tensor, t: int) -> torch.Tensor:
        return -2 * x if t > 300 else 0 * x  # the last step shows what noise the others have left

    class Extreme(torch.nn.Module):
        def forward(self, x: torch.Tensor, t: int, *_: object, **__: object) -> tuple[torch.Tensor]:
            return (velocity(x, t),)

    x, (abar, T) = z.double(), (scheduler.alphas_cumprod.double(), objective.timesteps)
    for t in (999, 749, 499, 249):
        keep, noise = abar[t].sqrt(), (1 - abar[t]).sqrt()
        x0 = (keep * x - noise * velocity(x, t)).clamp(-1, 1)
        eps = (x - keep * x0) / noise
        before = abar[t - T // 4] if t >= T // 4 else torch.ones(())
        x = before.sqrt() * x0 + (1 - before).sqrt() * eps
    found = denoise(Extreme(), scheduler, z, steps=4, generators=None)
    torch.testing.assert_close(found.double(), x, rtol=1e-4, atol=1e-5)


class Certain(torch.nn.Module):
    """Knows the image, whatever it is shown; the timesteps that it was asked for are kept."""

    def __init__(self, objective: DDPMConfig, image: torch.Tensor) -> None:
        super().__init__()
        self.image, self.prediction = image.double(), objective.prediction
        self.abar = NoiseSchedule(objective.schedule, objective.timesteps).alpha_bar
        self.asked: list[int] = []

    def forward(self, x: torch.Tensor, t: torch.Tensor, *_: object, **__: object) -> tuple[torch.Tensor]:
        self.asked.append(int(t))
        keep, noise = self.abar[t].sqrt(), (1 - self.abar[t]).sqrt()
        eps = (x - keep * self.image) / noise
        return ((eps if self.prediction == "epsilon" else keep * eps - noise * self.image).float(),)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [50, 60, 61, 150, 600])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_leaves_no_noise_for_any_number_of_steps(kind: str, steps: int, eta: float) -> None:
    """A denoiser that knows the image must lead to it; a level of 8 bits is 2/255."""
    objective, rng = DDPMConfig(schedule=kind), SampleRng(0, range(4))
    sampling = DDPMSampling(sampler="ddim", steps=steps, eta=eta)
    image = torch.linspace(-0.9, 0.9, 64).view(1, 1, 8, 8).expand(4, -1, -1, -1)
    scheduler = sampling.sampler.scheduler(objective.levels, clip=False)
    found = denoise(
        Certain(objective, image),
        scheduler,
        rng.normal(1, 8, 8),
        steps=steps,
        generators=rng.generators,
        eta=eta,
    )
    assert (found - image).abs().max() * 127.5 < 0.2


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_ddims_steps_lead_to_the_next_timestep(eta: float) -> None:
    """Song et al. 2021, eq. 12 and 16, over timesteps that are not evenly spaced."""
    objective, rng = DDPMConfig(schedule="linear", prediction="epsilon", timesteps=20), SampleRng(0, range(2))
    scheduler = DDPMSampling(sampler="ddim").sampler.scheduler(objective.levels, clip=False)
    model = Certain(objective, torch.full((2, 1, 4, 4), 0.4))
    noise = rng.normal(1, 4, 4)
    model.image = model.image + 0.3 * noise  # an answer that the noise moves
    found = denoise(model, scheduler, noise, steps=3, generators=rng.generators, eta=eta)
    assert model.asked == [19, 12, 6]
    again = SampleRng(0, range(2))
    x, abar = again.normal(1, 4, 4).double(), model.abar
    for t, after in ((19, 12), (12, 6), (6, -1)):
        now, then = abar[t], abar[after] if after >= 0 else torch.ones(())
        eps = (x - now.sqrt() * model.image) / (1 - now).sqrt()
        sigma = eta * ((1 - then) / (1 - now) * (1 - now / then)).sqrt()
        x = then.sqrt() * model.image + (1 - then - sigma**2).sqrt() * eps
        if eta:
            x = x + sigma * again.normal(1, 4, 4)
    torch.testing.assert_close(found.double(), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("timesteps", "steps"), [(1000, 50), (1000, 8), (20, 5)])
def test_where_the_steps_divide_t_ddim_is_diffusers_bit_for_bit(timesteps: int, steps: int) -> None:
    objective = DDPMConfig(timesteps=timesteps)
    sampling = DDPMSampling(sampler="ddim", steps=steps, eta=0.5)
    model = GaussianDenoiser(objective, 0.3, 0.4)
    ours = sampling.sampler.scheduler(objective.levels, clip=True)
    rng = SampleRng(0, range(3))
    noise = rng.normal(1, 4, 4)
    found = denoise(model, ours, noise, steps=steps, generators=rng.generators, eta=0.5)
    theirs, rng = sampling.sampler.scheduler(objective.levels, clip=True), SampleRng(0, range(3))
    theirs.set_timesteps(steps)
    x = rng.normal(1, 4, 4)
    for t in theirs.timesteps:
        output = model(x, t, None, False)[0]
        x = theirs.step(
            output, t, x, eta=0.5, use_clipped_model_output=True, generator=rng.generators
        ).prev_sample
    assert torch.equal(found, x)
    rng = SampleRng(0, range(3))  # the scheduler of a pipeline serves many calls
    noise = rng.normal(1, 4, 4)
    assert torch.equal(found, denoise(model, ours, noise, steps=steps, generators=rng.generators, eta=0.5))


def test_clipping_bounds_every_sampler() -> None:
    objective = DDPMConfig(timesteps=100)
    for sampler in ("ddpm", "ddim", "dpmsolver++"):
        sampling = DDPMSampling(sampler=sampler, steps=20)
        rng = SampleRng(0, range(8))
        model, scheduler = (
            GaussianDenoiser(objective, 0.9, 1.0),
            sampling.sampler.scheduler(objective.levels, clip=True),
        )
        x = denoise(model, scheduler, rng.normal(1, 8, 8), steps=20, generators=rng.generators)
        assert x.abs().max().item() <= 1 + 1e-5
        free = sampling.sampler.scheduler(objective.levels, clip=False)
        rng = SampleRng(0, range(8))
        wild = denoise(model, free, rng.normal(1, 8, 8), steps=20, generators=rng.generators)
        assert wild.abs().max().item() > 1.5


class Counted(torch.nn.Module):
    """Output that depends on the label; remembers the rows of every call."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None, return_dict: bool
    ) -> tuple[torch.Tensor]:
        self.rows.append(len(x))
        return (x * 2 + (0 if labels is None else labels.view(-1, 1, 1, 1)),)


def test_guidance_is_the_papers_formula_and_costs_what_it_says() -> None:
    x, labels, t = torch.randn(3, 1, 2, 2), torch.tensor([0, 1, 4]), torch.tensor(5)
    model = Counted()
    guided = guided_output(model, x, t, labels, guidance=Guidance(2.5), null=5)
    cond, uncond = x * 2 + labels.view(-1, 1, 1, 1), x * 2 + 5
    torch.testing.assert_close(guided, (1 + 1.5) * cond - 1.5 * uncond)  # eq. 6 with w = 1.5
    plain = guided_output(model, x, t, labels, guidance=Guidance(1.0), null=5)
    torch.testing.assert_close(plain, cond)
    torch.testing.assert_close(guided_output(model, x, t, labels, guidance=Guidance(0.0), null=5), uncond)
    assert model.rows == [6, 3, 6]


def test_guiding_noise_or_velocity_is_the_same() -> None:
    schedule = NoiseSchedule("cosine", 100)
    x, cond, uncond = (torch.randn(4, 1, 2, 2) for _ in range(3))
    t = torch.full((4,), 40)
    noise, signal = (1 - schedule.alpha_bar[40]).sqrt().float(), schedule.alpha_bar[40].sqrt().float()

    def velocity(eps: torch.Tensor) -> torch.Tensor:
        return (eps - noise * x) / signal  # from eps = noise * x + signal * v

    by_v = velocity(uncond) + 3 * (velocity(cond) - velocity(uncond))
    by_eps = uncond + 3 * (cond - uncond)
    torch.testing.assert_close(schedule.epsilon_from_velocity(x, by_v, t), by_eps, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler])
def test_samplers_start_at_the_last_timestep(kind: type) -> None:
    sampler = "ddpm" if kind is DDPMScheduler else "ddim"
    scheduler = DDPMSampling(sampler=sampler).sampler.scheduler(DDPMConfig().levels, clip=True)
    scheduler.set_timesteps(50)
    assert isinstance(scheduler, kind)
    assert scheduler.timesteps[0] == 999

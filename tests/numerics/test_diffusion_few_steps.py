"""Few-step objectives against closed forms on Gaussians and points, and the papers' formulas."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato.core.batch import DataSpec, Piece
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng, StreamRng
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.families.diffusion.distillation.distances import pseudo_huber
from sfumato.families.diffusion.distillation.jumps import JumpSampling
from sfumato.families.diffusion.distillation.middle import Middle
from sfumato.families.diffusion.distillation.tangents import tangent
from sfumato.families.diffusion.guidance.labels import Guided, LabelDropout
from sfumato.families.diffusion.networks import NETWORKS, predict
from sfumato.families.diffusion.networks.dit import DiTConfig
from sfumato.families.diffusion.networks.unet import UNetConfig
from sfumato.families.diffusion.objectives import OBJECTIVES
from sfumato.families.diffusion.objectives.adversarial_distillation import (
    AdversarialDistillationConfig,
    Head,
)
from sfumato.families.diffusion.objectives.consistency_distillation import ConsistencyDistillationConfig
from sfumato.families.diffusion.objectives.dmd2 import Dmd2Config, Scored
from sfumato.families.diffusion.objectives.ect import EctConfig
from sfumato.families.diffusion.objectives.mean_flow import MeanFlowConfig
from sfumato.families.diffusion.objectives.progressive_distillation import (
    LAST,
    ProgressiveDistillationConfig,
    two_steps,
)
from sfumato.families.diffusion.objectives.reflow import ReflowConfig, ReflowSampling
from sfumato.families.diffusion.objectives.scm import ScmConfig
from sfumato.families.diffusion.objectives.shortcut import ShortcutConfig

TEACHER = EctConfig.tiny_teacher()
STD = 0.5
"""Of the Gaussian images; also sigma_data of the teacher, an EDM model."""
ROWS = 64
UNSTEERED = LabelDropout(None, 0.0)
Denoise = Callable[[Tensor, Tensor], Tensor]


def at(images: int = 0, total: int = 1_000, batch: int = ROWS) -> Progress:
    return Progress(step=0, images=images, total_images=total, batch=batch)


def rng(rows: int = ROWS) -> StreamRng:
    return StreamRng([Piece(0, 0, rows)], rows_per_stream=rows, seed=1, images=0, phase="x")


def normal_images(rows: int = ROWS) -> dict[str, Any]:
    return {"image": STD * torch.randn(rows, 1, 4, 4, generator=torch.Generator().manual_seed(5))}


def posterior_mean(x: Tensor, sigma: Tensor) -> Tensor:
    """E[y | x] where y ~ N(0, STD^2) and x = y + sigma n."""
    return x * (STD**2 / (STD**2 + sigma**2)).view(-1, 1, 1, 1)


def end_of_path(x: Tensor, sigma: Tensor) -> Tensor:
    """Where the probability flow leads from x at sigma to 0, for the same Gaussian."""
    return x * (STD / (STD**2 + sigma**2).sqrt()).view(-1, 1, 1, 1)


class Edm(nn.Module):
    """A network that, preconditioned as an EDM model of sigma_data STD, denoises by a given function."""

    def __init__(self, denoise: Denoise) -> None:
        super().__init__()
        self.denoise = denoise

    def forward(self, x: Tensor, t: Tensor, given: Any, return_dict: bool = False) -> tuple[Tensor]:
        sigma = (4 * t).exp()
        total = (sigma**2 + STD**2).view(-1, 1, 1, 1)
        whole = x * total.sqrt()
        image = self.denoise(whole, sigma)
        return ((image - STD**2 / total * whole) / (sigma.view(-1, 1, 1, 1) * STD / total.sqrt()),)


def gaussian_outputs(kind: str, options: Mapping[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """What the best network of an objective answers at its own input and time."""
    if kind == "edm":
        return lambda x, t: Edm(posterior_mean)(x, t, None)[0]
    if kind == "rectified_flow":

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            s = (t / 1000).view(-1, 1, 1, 1)
            variance = (1 - s) ** 2 * STD**2 + s**2
            return (s - (1 - s) * STD**2) / variance * x

        return velocity
    schedule = OBJECTIVES.find("ddpm")(**options).build()._schedule  # type: ignore[attr-defined]

    def of_ddpm(x: Tensor, t: Tensor) -> Tensor:
        abar = schedule.alpha_bar[t.long()].float().view(-1, 1, 1, 1)
        variance = abar * STD**2 + 1 - abar
        noise, image = (1 - abar).sqrt() / variance * x, abar.sqrt() * STD**2 / variance * x
        return (
            noise if options["prediction"] == "epsilon" else abar.sqrt() * noise - (1 - abar).sqrt() * image
        )

    return of_ddpm


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("edm", {}),
        ("rectified_flow", {}),
        ("ddpm", {"prediction": "epsilon"}),
        ("ddpm", {"prediction": "v", "schedule": "linear"}),
    ],
)
def test_any_objective_tells_the_image_behind_noise(kind: str, options: dict[str, Any]) -> None:
    objective = OBJECTIVES.find(kind)(**options).build()
    sigma = torch.tensor([0.05, 0.3, 2.0, 30.0])
    if kind == "ddpm":  # at its own levels, where the closed form above is exact
        levels = objective._schedule.sigmas  # type: ignore[attr-defined]
        sigma = torch.stack([levels[(levels - s).abs().argmin()] for s in sigma]).float()
    x = torch.randn(4, 1, 4, 4)
    found = objective.image_in(gaussian_outputs(kind, options), x, sigma)  # type: ignore[attr-defined]
    torch.testing.assert_close(found, posterior_mean(x, sigma), rtol=2e-3, atol=1e-4)


def test_a_time_between_two_timesteps_is_that_of_its_noise() -> None:
    schedule = OBJECTIVES.find("ddpm")(schedule="cosine").build()._schedule  # type: ignore[attr-defined]
    levels = schedule.sigmas
    torch.testing.assert_close(schedule.time_of(levels.float()[:990]), torch.arange(990.0), rtol=0, atol=0.02)
    between = (levels[400] * levels[401]).sqrt().float().view(1)
    assert schedule.time_of(between).item() == pytest.approx(400.5, abs=0.01)
    assert schedule.time_of(torch.tensor([1e-6, 1e9])).tolist() == [0, len(levels) - 1]


@pytest.mark.parametrize("network", [UNetConfig.tiny(), DiTConfig.tiny()])
def test_the_tangent_is_the_derivative_along_its_direction(network: UNetConfig | DiTConfig) -> None:
    net = network.build(DataSpec(1, 8, 8, ("a", "b")), conditional=True, spans=True)
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    x, v = torch.randn(2, 3, 1, 8, 8, generator=torch.Generator().manual_seed(2)).unbind()
    t, span = torch.tensor([[100.0, 500.0, 900.0], [50.0, 0.0, 900.0]]).unbind()
    labels, ones = torch.tensor([0, 1, 2]), torch.ones(3)

    def output(x: Tensor, t: Tensor, span: Tensor) -> Tensor:
        return net(x, t, labels, return_dict=False, span=span)[0]  # type: ignore[no-any-return]

    value, change = tangent(output, (x, t, span), (v, ones, ones))
    h = 1e-2
    with torch.no_grad():
        torch.testing.assert_close(value, output(x, t, span), rtol=1e-4, atol=1e-5)
        ahead, behind = (output(x + s * h * v, t + s * h, span + s * h) for s in (1, -1))
    torch.testing.assert_close(change, (ahead - behind) / (2 * h), rtol=2e-2, atol=5e-3)


@pytest.mark.parametrize("network", [UNetConfig.tiny(), DiTConfig.tiny()])
def test_a_network_with_spans_sees_them(network: UNetConfig | DiTConfig) -> None:
    net = network.build(DataSpec(1, 8, 8), conditional=False, spans=True)
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    x, t = torch.randn(2, 1, 8, 8), torch.full((2,), 300.0)
    same, other = (predict(net, x, t, None, torch.full((2,), s)) for s in (0.0, 700.0))
    assert not torch.allclose(same, other, atol=1e-3)


class TestEct:
    def test_the_lower_level_is_the_authors(self) -> None:
        config = EctConfig(teacher=TEACHER, stages=4)
        t = torch.tensor([0.02, 0.5, 3.0, 40.0])
        for stage in range(4):
            found = config.lower(t, at(images=250 * stage))
            for value, r in zip(t.tolist(), found.tolist(), strict=True):
                ratio = 1 - (1 + 8 / (1 + math.exp(value))) / 2 ** (stage + 1)
                assert r == pytest.approx(max(0.0, value * ratio), rel=1e-5)

    def test_a_consistency_function_has_no_loss_and_a_denoiser_has(self) -> None:
        """Late in training both levels are near: the end of the path is the same from both. The noise is that
        of the data's path, so a consistency function agrees on average over images, not for each."""
        ect = EctConfig(teacher=TEACHER, stages=8).build()
        point = {"image": torch.full((ROWS, 1, 4, 4), 0.3)}
        exact = {"network": Edm(lambda x, sigma: torch.full_like(x, 0.3))}
        assert ect.loss(exact, point, UNSTEERED, at(999), rng()).loss_B.abs().max() < 1e-3
        wrong = {"network": Edm(lambda x, sigma: 0.9 * x)}
        assert ect.loss(wrong, point, UNSTEERED, at(999), rng()).loss_B.mean() > 0.1

    def test_the_two_levels_differ_at_the_least_noise_too(self) -> None:
        """Equal answers would have a distance whose gradient is not finite."""
        ect = EctConfig(teacher=TEACHER, stages=8, p_mean=-12.0).build()
        network = UNetConfig.tiny().build(DataSpec(1, 4, 4), conditional=False)
        ect.loss({"network": network}, normal_images(), UNSTEERED, at(999), rng()).loss_B.mean().backward()
        assert all(weight.grad.isfinite().all() for weight in network.parameters())
        same = torch.zeros(2, 1, 2, 2, requires_grad=True)
        pseudo_huber(same, torch.zeros(2, 1, 2, 2), 0.0).sum().backward()
        assert same.grad is not None and not same.grad.any()

    def test_one_step_of_the_exact_function_draws_the_gaussian(self) -> None:
        ect = EctConfig(teacher=TEACHER).build()
        noise = torch.randn(4_000, 1, 4, 4, generator=torch.Generator().manual_seed(2))
        guided = Guided(Edm(end_of_path), None, 1.0, 0)
        for steps in (1, 2):
            found = ect.sample(
                guided, noise, JumpSampling(steps=steps), SampleRng(0, range(4_000)), clip=False
            )
            assert found.std().item() == pytest.approx(STD, rel=0.02)


class TestConsistencyDistillation:
    def test_a_step_follows_the_probability_flow(self) -> None:
        objective = ConsistencyDistillationConfig(teacher=TEACHER, levels=64).build()
        nets = {"teacher": Edm(posterior_mean)}
        x, high = torch.randn(5, 1, 4, 4), torch.tensor([0.1, 0.5, 2.0, 8.0, 30.0])
        low = 0.95 * high
        exact = x * ((STD**2 + low**2) / (STD**2 + high**2)).sqrt().view(-1, 1, 1, 1)
        torch.testing.assert_close(objective.step(nets, x, high, low, None), exact, rtol=1e-3, atol=1e-4)

    def test_the_end_of_the_path_is_the_fixed_point(self) -> None:
        objective = ConsistencyDistillationConfig(teacher=TEACHER, levels=160, distance="l2").build()
        nets = {name: Edm(end_of_path) for name in ("network", "target")} | {"teacher": Edm(posterior_mean)}
        good = objective.loss(nets, normal_images(), UNSTEERED, at(), rng()).loss_B.mean()
        nets |= {name: Edm(posterior_mean) for name in ("network", "target")}
        bad = objective.loss(nets, normal_images(), UNSTEERED, at(), rng()).loss_B.mean()
        assert good < 0.01 * bad

    def test_at_the_least_noise_the_answer_is_the_input(self) -> None:
        objective = ConsistencyDistillationConfig(teacher=TEACHER).build()
        x = torch.randn(3, 1, 4, 4)
        net = {"network": Edm(lambda x, sigma: 5 * x)}
        assert torch.equal(objective.answer(net, "network", x, torch.full((3,), 0.002), None), x)

    def test_guidance_of_the_teacher_is_that_of_its_images(self) -> None:
        class Labelled(nn.Module):
            def forward(
                self, x: Tensor, t: Tensor, label: Tensor, return_dict: bool = False
            ) -> tuple[Tensor]:
                return Edm(lambda whole, sigma: label.view(-1, 1, 1, 1).expand_as(whole).float())(x, t, None)

        config = ConsistencyDistillationConfig(teacher=TEACHER, guidance=3.0)
        objective = config.build()
        objective._null = 7
        label, sigma = torch.tensor([1, 2]), torch.tensor([0.5, 2.0])
        found = objective.taught({"teacher": Labelled()}, torch.randn(2, 1, 4, 4), sigma, label)
        wanted = torch.tensor([7 + 3 * (1 - 7), 7 + 3 * (2 - 7)]).float().view(-1, 1, 1, 1)
        torch.testing.assert_close(found, wanted.expand_as(found), rtol=1e-4, atol=1e-3)


class TestProgressiveDistillation:
    def test_one_step_ends_where_two_do(self) -> None:
        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            return torch.sin(3 * x) * (1 / (1 + sigma)).view(-1, 1, 1, 1)

        z = torch.randn(3, 1, 2, 2).double()
        start, middle, end = (
            torch.tensor(v).double() for v in ([5.0, 1, 0.5], [2.0, 0.5, 0.1], [1.0, 0.1, 0])
        )
        image = two_steps(denoise, z, start, middle, end)

        def ddim(z: Tensor, image: Tensor, a: Tensor, b: Tensor) -> Tensor:
            return image + (b / a).view(-1, 1, 1, 1) * (z - image)

        half = ddim(z, denoise(z, start), start, middle)
        torch.testing.assert_close(
            ddim(z, image, start, end), ddim(half, denoise(half, middle), middle, end), rtol=1e-9, atol=1e-9
        )

    def test_the_teacher_of_a_round_is_the_student_of_the_last(self) -> None:
        config = ProgressiveDistillationConfig(teacher=TEACHER, first=16, last=2)
        spec = config.build().nets()[LAST]
        decays = [spec.decay(at(images, total=300, batch=10)) for images in range(10, 301, 10)]  # type: ignore[union-attr]
        assert [10 * (i + 1) for i, decay in enumerate(decays) if decay == 0] == [100, 200]
        assert set(decays) == {0.0, 1.0}
        assert [config.round(at(images, total=300)) for images in (0, 90, 100, 199, 200, 300)] == [
            0,
            0,
            1,
            1,
            2,
            2,
        ]

    def test_the_last_round_in_few_steps_is_the_teacher_in_many(self) -> None:
        """A student that has learnt all rounds' targets draws what the teacher draws in `first` steps."""
        objective = ProgressiveDistillationConfig(teacher=TEACHER, first=4, last=4 // 2).build()
        levels = objective._levels(4)
        noise = torch.randn(6, 1, 4, 4)
        guided = Guided(Edm(posterior_mean), None, 1.0, 0)

        def student(x: Tensor, sigma: Tensor) -> Tensor:
            index = (levels - sigma[0]).abs().argmin().item()
            return two_steps(posterior_mean, x, *(levels[index + i].expand(len(x)) for i in range(3)))

        fine = noise * levels[0]
        for start, end in zip(levels.tolist(), levels.tolist()[1:], strict=False):
            image = posterior_mean(fine, torch.tensor([start]))
            fine = image + end / start * (fine - image)
        options = ProgressiveDistillationConfig.Sampling()
        found = objective.sample(
            Guided(Edm(student), None, 1.0, 0), noise, options, SampleRng(0, range(6)), clip=False
        )
        torch.testing.assert_close(found, fine, rtol=1e-3, atol=1e-4)
        assert guided.weight == 1

    def test_steps_that_do_not_halve_are_refused(self) -> None:
        with pytest.raises(ValueError, match="is not first=12 halved"):
            ProgressiveDistillationConfig(teacher=TEACHER, first=12, last=2)


def test_reflow_of_a_gaussian_is_a_straight_line() -> None:
    """The teacher maps noise z to STD z, so x = (STD + sigma) z, and one step draws what the teacher does."""
    objective = ReflowConfig(teacher=TEACHER, solver_steps=64).build()

    def straight(x: Tensor, sigma: Tensor) -> Tensor:
        return x * (STD / (STD + sigma)).view(-1, 1, 1, 1)

    nets = {"network": Edm(straight), "teacher": Edm(posterior_mean)}
    good = objective.loss(nets, normal_images(), UNSTEERED, at(), rng()).loss_B.mean()
    nets["network"] = Edm(posterior_mean)
    bad = objective.loss(nets, normal_images(), UNSTEERED, at(), rng()).loss_B.mean()
    assert good < 0.01 * bad
    noise = torch.randn(6, 1, 4, 4)
    guided = Guided(Edm(straight), None, 1.0, 0)
    one, four = (
        objective.sample(guided, noise, ReflowSampling(steps=n), SampleRng(0, range(6)), clip=False)
        for n in (1, 4)
    )
    torch.testing.assert_close(one, STD * noise, rtol=0.01, atol=0.01)
    torch.testing.assert_close(four, one, rtol=1e-3, atol=1e-3)


class Velocity(nn.Module):
    """A network of (x, t, span) that answers by a function of them in [0, 1]."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor], scale: float = 10.0) -> None:
        super().__init__()
        self.function, self.scale = function, scale

    def forward(self, x: Tensor, t: Tensor, given: Any, return_dict: bool, span: Tensor) -> tuple[Tensor]:
        return (self.function(x, t.view(-1, 1, 1, 1) / self.scale, span.view(-1, 1, 1, 1) / self.scale),)


class TestMeanFlow:
    @pytest.mark.parametrize("direction", ["data", "model"])
    def test_the_mean_velocity_of_a_point_has_no_loss(self, direction: str) -> None:
        """All paths to one image are straight: u = (x - y) / t for any step."""
        objective = MeanFlowConfig(apart=1.0, direction=direction).build()
        images = {"image": torch.full((ROWS, 1, 4, 4), 0.3)}
        exact = {"network": Velocity(lambda x, t, span: (x - 0.3) / t)}
        assert objective.loss(exact, images, UNSTEERED, at(), rng()).metrics["squared_error"].max() < 1e-6

    def test_the_target_is_the_identity_of_the_paper(self) -> None:
        """u = a x + b t + c (t - r): du/dt = a v + b + c."""
        a, b, c = 0.7, -0.4, 1.3
        config = MeanFlowConfig(apart=1.0, power=0.0)
        images = normal_images()
        nets = {"network": Velocity(lambda x, t, span: a * x + b * t + c * span)}
        found = config.build().loss(nets, images, UNSTEERED, at(), rng()).loss_B
        source = rng()
        t, r = (v.view(-1, 1, 1, 1) for v in config.build().times(source))
        z = source.normal(1, 4, 4)
        y = images["image"]
        x, v = (1 - t) * y + t * z, z - y
        wanted = a * x + b * t + c * (t - r) - (v - (t - r) * (a * v + b + c))
        torch.testing.assert_close(found, wanted.square().flatten(1).sum(1), rtol=1e-4, atol=1e-4)

    def test_guidance_enters_the_velocity(self) -> None:
        """With rows of one class: v~ = w v + (1 - w) u(null), the network being the label itself."""
        config = MeanFlowConfig(apart=0.0, power=0.0, guidance=2.0, label_dropout=0.1)

        class Label(nn.Module):
            def forward(self, x: Tensor, t: Tensor, label: Tensor, return_dict: bool, span: Tensor) -> Any:
                return (label.view(-1, 1, 1, 1).expand_as(x).float(),)

        images = {**normal_images(), "label": torch.ones(ROWS, dtype=torch.long)}
        found = config.build().loss({"network": Label()}, images, LabelDropout(3, 0.0), at(), rng())
        source = rng()
        config.build().times(source)
        v = source.normal(1, 4, 4) - images["image"]
        wanted = (1 - (2 * v - 3)).square().flatten(1).sum(1)
        torch.testing.assert_close(found.loss_B, wanted, rtol=1e-4, atol=1e-4)


class TestShortcut:
    def test_any_step_towards_a_point_has_no_loss(self) -> None:
        objective = ShortcutConfig(finest=8, consistent=0.5).build()
        images = {"image": torch.full((ROWS, 1, 4, 4), 0.3)}
        net = Velocity(lambda x, t, span: (x - 0.3) / t.clamp(min=1e-6), 1_000)
        found = objective.loss({"network": net, "target": net}, images, UNSTEERED, at(), rng())
        assert found.loss_B.max() < 1e-6

    def test_two_half_steps_are_the_target(self) -> None:
        """If the network answers with the length of its step, the target of 2d is d, or 0 at the finest."""
        objective = ShortcutConfig(finest=4, consistent=1.0).build()
        net = Velocity(lambda x, t, span: span.expand_as(x), 1_000)
        found = objective.loss(
            {"network": net, "target": net}, normal_images(), UNSTEERED, at(), rng()
        ).loss_B
        # 2d = 1: target 1/2, error 1/2; 2d = 1/2: the halves are the finest, which are velocities: span 0.
        assert set(found.mul(4).round().tolist()) == {1.0}

    def test_steps_are_powers_of_two(self) -> None:
        with pytest.raises(ValueError, match="nearest is 4"):
            ShortcutConfig.Sampling(steps=5)


class TestScm:
    @pytest.mark.parametrize("path", ["teacher", "data"])
    def test_the_tangent_of_the_exact_function_is_zero(self, path: str) -> None:
        """For a Gaussian of sigma_data the path of TrigFlow stands still, and f(x, t) = x."""
        objective = ScmConfig(teacher=TEACHER, path=path).build()
        nets = {"network": Edm(end_of_path), "teacher": Edm(posterior_mean)}
        found = objective.loss(nets, normal_images(), UNSTEERED, at(500), rng()).metrics["tangent"]
        if path == "teacher":
            assert found.max() < 1e-3
        else:  # of single images only the mean over images vanishes
            assert found.min() > 1e-2

    def test_its_network_is_the_papers(self) -> None:
        """EDM and TrigFlow are one model: F of one is minus that of the other (Lu & Song 2025, eq. 4)."""
        objective = ScmConfig(teacher=TEACHER).build()
        raw = nn.Module()
        raw.forward = lambda x, t, given, return_dict: (torch.sin(x) + t.view(-1, 1, 1, 1),)  # type: ignore[method-assign]
        x, t = torch.randn(4, 1, 4, 4), torch.tensor([0.2, 0.7, 1.2, 1.5])
        found = objective.velocity(raw, STD * x, t, None)
        wanted = -STD * (torch.sin(x) + (STD * t.tan()).log().view(-1, 1, 1, 1) / 4)
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


class TestDmd2:
    def test_the_generator_is_moved_along_the_difference_of_the_denoisers(self) -> None:
        """The gradient of the loss in an image is g over the number of pixels (Yin et al. 2024a, eq. 8)."""
        objective = Dmd2Config(teacher=TEACHER, adversarial=0).build()
        generator = Edm(lambda x, sigma: torch.full_like(x, 0.4))
        image = torch.zeros(ROWS, 1, 4, 4, requires_grad=True)
        generator.denoise = lambda x, sigma: image + 0.4
        nets = {
            "network": generator,
            "teacher": Edm(lambda x, sigma: torch.full_like(x, 0.1)),
            "score": Scored(lambda: Edm(lambda x, sigma: torch.full_like(x, 0.7)), None),
        }
        objective.loss(nets, normal_images(), UNSTEERED, at(), rng()).loss_B.sum().backward()
        assert image.grad is not None
        wanted = (0.7 - 0.1) / (0.4 - 0.1) / 16
        torch.testing.assert_close(image.grad, torch.full_like(image, wanted), rtol=2e-2, atol=1e-3)

    def test_the_copy_learns_the_generators_images_and_its_head_tells_them(self) -> None:
        objective = Dmd2Config(teacher=TEACHER).build()
        (phase,) = objective.further_phases(UNSTEERED)
        build = UNetConfig.tiny().build
        nets = {
            "network": Edm(lambda x, sigma: torch.full_like(x, -0.8)),
            "score": Scored(lambda: build(DataSpec(1, 4, 4), conditional=False), UNetConfig.tiny().middle()),
        }
        optimizer = torch.optim.Adam(nets["score"].parameters(), lr=1e-2)
        images = {"image": torch.full((ROWS, 1, 4, 4), 0.8)}
        errors: list[float] = []
        for step in range(25):
            source = StreamRng([Piece(0, 0, ROWS)], rows_per_stream=ROWS, seed=1, images=step, phase="x")
            out = phase.loss(nets, images, at(), source)
            errors.append(out.metrics["denoising"].mean().item())
            optimizer.zero_grad()
            out.loss_B.mean().backward()
            optimizer.step()
        assert errors[-1] < 0.5 * errors[0]
        assert out.metrics["accuracy"].mean().item() > 0.7


class Bright(Edm):
    """A denoiser whose middle sees how bright each pixel of its answer's input is, without the noise."""

    def __init__(self, denoise: Denoise) -> None:
        super().__init__(denoise)
        self.middle = nn.Identity()

    def forward(self, x: Tensor, t: Tensor, given: Any, return_dict: bool = False) -> tuple[Tensor]:
        whole = x * ((4 * t).exp() ** 2 + STD**2).sqrt().view(-1, 1, 1, 1)
        self.middle(whole.repeat(1, 2, 1, 1))
        return super().forward(x, t, given)


@pytest.mark.parametrize(
    ("network", "refused"), [({}, False), ({"dropout": 0.2}, False), ({"channels": [8, 32]}, True)]
)
def test_a_student_starts_from_a_network_that_differs_in_dropout_at_most(
    network: dict[str, Any], refused: bool
) -> None:
    own = {"channels": [8, 16], "head_dim": 8, "norm_groups": 4, **network}
    content = {"condition": "none", "network": own, "objective": EctConfig(teacher=TEACHER).model_dump()}
    problems = DiffusionConfig.model_validate(content).problems(DataSpec(1, 8, 8))
    assert [("whose weights it is to start from" in problem) for problem in problems] == [True] * refused


class TestAdversarialDistillation:
    @pytest.mark.parametrize("kind", ["unet", "ddpmpp", "dit"])
    def test_the_middle_of_a_network_is_read_at_every_position(self, kind: str) -> None:
        config = NETWORKS.find(kind).tiny()
        middle = config.middle()
        assert middle is not None
        network = Middle(lambda: config.build(DataSpec(1, 8, 8), conditional=False), middle)
        image, positions = network(torch.randn(3, 1, 8, 8), torch.ones(3))
        assert image.shape == (3, 1, 8, 8)
        assert positions.shape == (3, 16, middle[1])

    def test_the_student_learns_the_levels_of_its_sampling(self) -> None:
        objective = AdversarialDistillationConfig(teacher=TEACHER, steps=2).build()
        seen: list[Tensor] = []

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            seen.append(sigma)
            return x

        nets = {"network": Edm(denoise), "teacher": Middle(lambda: Bright(posterior_mean), ("middle", 2))}
        objective.loss({**nets, "head": Head(2)}, normal_images(), UNSTEERED, at(), rng())
        levels = seen[0].sort().values
        assert levels[0].item() == pytest.approx(0.821, rel=1e-3) and levels[-1].item() == pytest.approx(
            80, rel=1e-3
        )
        assert 0.3 < float((levels > 1).float().mean()) < 0.7

    def test_losses_are_the_papers(self) -> None:
        """With a head that says h everywhere and a teacher that answers 0.1 where the student does 0.4."""
        config = AdversarialDistillationConfig(teacher=TEACHER, distillation=2.5, p_std=1e-6, p_mean=0.0)
        objective, head = config.build(), Head(2)
        nn.init.zeros_(head.layers[3].weight)
        nn.init.constant_(head.layers[3].bias, 0.3)
        nets = {
            "network": Edm(lambda x, sigma: torch.full_like(x, 0.4)),
            "teacher": Middle(lambda: Bright(lambda x, sigma: torch.full_like(x, 0.1)), ("middle", 2)),
            "head": head,
        }
        loss = objective.loss(nets, normal_images(), UNSTEERED, at(), rng()).loss_B
        wanted = -0.3 + 2.5 / 2**0.5 * (0.4 - 0.1) ** 2  # sigma is 1
        torch.testing.assert_close(loss, torch.full_like(loss, wanted), rtol=1e-3, atol=1e-4)
        (phase,) = objective.further_phases(UNSTEERED)
        loss = phase.loss(nets, normal_images(), at(), rng()).loss_B
        torch.testing.assert_close(loss, torch.full_like(loss, (1 - 0.3) + (1 + 0.3)))

    def test_the_head_learns_to_tell_images_and_the_student_to_be_taken_for_real(self) -> None:
        config = AdversarialDistillationConfig(teacher=TEACHER, p_mean=-2.0, p_std=0.5)
        objective, image = config.build(), nn.Parameter(torch.tensor(-0.8))
        teacher = Middle(
            lambda: UNetConfig.tiny().build(DataSpec(1, 4, 4), conditional=False), ("mid_block", 16)
        )
        teacher.requires_grad_(False)
        nets: dict[str, nn.Module] = {
            "network": Edm(lambda x, sigma: image.expand_as(x)),
            "teacher": teacher,
            "head": Head(16),
        }
        (phase,) = objective.further_phases(UNSTEERED)
        judge = torch.optim.Adam(nets["head"].parameters(), lr=1e-2)
        images = {"image": torch.full((ROWS, 1, 4, 4), 0.8)}
        for step in range(30):
            source = StreamRng([Piece(0, 0, ROWS)], rows_per_stream=ROWS, seed=1, images=step, phase="x")
            out = phase.loss(nets, images, at(), source)
            judge.zero_grad()
            out.loss_B.mean().backward()
            judge.step()
        assert out.metrics["accuracy"].mean().item() > 0.9
        assert image.grad is None, "the student does not learn while the head does"
        objective.loss(nets, images, UNSTEERED, at(), rng()).loss_B.mean().backward()
        assert image.grad is not None and image.grad.item() < 0, "brighter images are taken for real"

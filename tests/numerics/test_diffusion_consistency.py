"""Consistency training against the papers' formulas and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from sfumato.core.batch import DataSpec, Piece
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng, StreamRng
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.families.diffusion.guidance.labels import Guided, LabelDropout
from sfumato.families.diffusion.networks.unet import UNetConfig
from sfumato.families.diffusion.objectives.consistency import (
    Consistency,
    ConsistencyConfig,
    ConsistencySampling,
    Curriculum,
)
from sfumato.parallel import Placement
from sfumato.parallel.strategies.single import Single
from sfumato.training.loop import install

ROWS = 4096


def at(images: int, total: int = 400_000) -> Progress:
    return Progress(step=0, images=images, total_images=total, batch=1)


class Answer(torch.nn.Module):
    """Answers with `function` of what it is shown, which it keeps."""

    def __init__(self, function) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.function = function
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None, return_dict: bool
    ) -> tuple[torch.Tensor]:
        self.seen.append((x, t))
        return (self.function(x, t),)


def test_at_the_least_noise_the_model_returns_its_input() -> None:
    x = torch.randn(5, 1, 4, 4)
    found = Consistency(ConsistencyConfig()).consistency(
        lambda x, t: torch.randn_like(x) * 100, x, torch.full((5,), 0.002)
    )
    assert torch.equal(found, x)


def test_preconditioning_is_the_papers() -> None:
    config = ConsistencyConfig(sigma_data=0.6)
    sigma = torch.tensor([0.01, 0.5, 3.0, 80.0])
    x = torch.randn(4, 1, 2, 2)
    network = Answer(lambda x, t: torch.full_like(x, 0.25))
    found = Consistency(config).consistency(Guided(network, None, 1.0, 0), x, sigma)
    shown, t = network.seen[0]
    for row, value in enumerate(sigma.double().tolist()):
        skip = 0.36 / ((value - 0.002) ** 2 + 0.36)
        out = 0.6 * (value - 0.002) / math.sqrt(value**2 + 0.36)
        torch.testing.assert_close(found[row], skip * x[row] + out * 0.25, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(shown[row], x[row] / math.sqrt(value**2 + 0.36), rtol=1e-5, atol=1e-6)
        assert t[row].item() == pytest.approx(250 * math.log(value), rel=1e-5)


def test_doubling_is_the_schedule_of_improved_training() -> None:
    """Song & Dhariwal 2024, sec. 3.4: from 11 to 1,281 levels, doubled every 50,000 of 400,000 steps."""
    curriculum = Curriculum(growth="doubling", first=10, last=1280)
    found = [curriculum.levels(at(images)) for images in range(0, 400_000, 50_000)]
    assert found == [11, 21, 41, 81, 161, 321, 641, 1281]
    assert curriculum.levels(at(49_999)) == 11
    assert curriculum.levels(at(400_000)) == 1281
    assert curriculum.levels(at(4_000, total=8_000)) == curriculum.levels(at(200_000))


def test_root_is_the_schedule_of_the_first_paper() -> None:
    curriculum = Curriculum(growth="root", first=2, last=150)
    share = np.linspace(0, 1, 41)
    expected = np.ceil(np.sqrt(share * (151**2 - 4) + 4) - 1) + 1
    found = [curriculum.levels(at(round(value * 400_000))) for value in share]
    assert found == expected.tolist()
    assert (found[0], found[-1]) == (2, 151)


def test_the_teacher_slows_as_levels_grow() -> None:
    """mu(k) = exp(s0 ln mu0 / N(k)); without averaging the teacher is the student of every step."""
    curriculum = Curriculum(growth="root", first=2, last=150)
    for images in (0, 100_000, 400_000):
        levels = curriculum.levels(at(images))
        assert curriculum.teacher_decay(0.9, at(images)) == pytest.approx(0.9 ** (2 / levels))
    assert curriculum.teacher_decay(0.0, at(100)) == 0.0
    spec = Consistency(ConsistencyConfig(curriculum=curriculum, teacher_decay=0.9)).nets()["teacher"]
    assert spec.decay(at(400_000)) == pytest.approx(0.9 ** (2 / 151))
    assert spec.source == "network"


@pytest.mark.parametrize("noise", ["lognormal", "uniform"])
def test_pairs_of_levels_follow_their_distribution(noise: str) -> None:
    sigmas, cumulative = Consistency(ConsistencyConfig(noise=noise)).levels(41)
    i = np.arange(41)
    expected = (0.002 ** (1 / 7) + i / 40 * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
    np.testing.assert_allclose(sigmas.numpy(), expected, rtol=1e-9)
    weight = np.diff(stats.norm.cdf((np.log(expected) + 1.1) / 2.0)) if noise == "lognormal" else np.ones(40)
    np.testing.assert_allclose(np.diff(cumulative.numpy(), prepend=0), weight / weight.sum(), atol=1e-9)
    assert cumulative[-1] == 1


@pytest.mark.parametrize(
    "config",
    [
        ConsistencyConfig(),
        ConsistencyConfig(distance="l2", weight="one", noise="uniform", teacher_decay=0.9),
        ConsistencyConfig(huber=0.3),
    ],
    ids=["improved", "first", "huber"],
)
def test_loss_is_the_papers_for_networks_that_are_known(config: ConsistencyConfig) -> None:
    student, teacher = (Answer(lambda x, t, c=c: torch.full_like(x, c)) for c in (0.25, -0.5))
    x = torch.rand(ROWS, 1, 2, 2) * 2 - 1
    rng = StreamRng([Piece(0, 0, ROWS)], rows_per_stream=ROWS, seed=0, images=0, phase="consistency")
    objective, progress = Consistency(config), at(100_000)
    nets = {"network": student, "teacher": teacher}
    out = objective.loss(nets, {"image": x}, LabelDropout(None, 0), progress, rng)

    high, low = (torch.exp(net.seen[0][1].double() / 250).view(-1, 1, 1, 1) for net in (student, teacher))
    seen_high, seen_low = (
        net.seen[0][0].double() * (sigma**2 + 0.25).sqrt() for net, sigma in ((student, high), (teacher, low))
    )
    z = (seen_high - seen_low) / (high - low)  # one noise for both
    torch.testing.assert_close(seen_high, x + high * z, rtol=1e-4, atol=1e-3)
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-3

    def f(seen: torch.Tensor, sigma: torch.Tensor, answer: float) -> torch.Tensor:
        skip = 0.25 / ((sigma - 0.002) ** 2 + 0.25)
        return skip * seen + 0.5 * (sigma - 0.002) / (sigma**2 + 0.25).sqrt() * answer

    squared = (f(seen_high, high, 0.25) - f(seen_low, low, -0.5)).square().sum(dim=(1, 2, 3))
    c = 0.00054 * 2 if config.huber is None else config.huber
    distance = squared if config.distance == "l2" else (squared + c**2).sqrt() - c
    expected = distance if config.weight == "one" else distance / (high - low).flatten()
    torch.testing.assert_close(out.loss_B.double(), expected, rtol=1e-2, atol=1e-2)

    levels, cumulative = objective.levels(config.curriculum.levels(progress))
    assert out.metrics["noise_levels"].item() == len(levels) == 41
    index = torch.searchsorted(levels.log(), low.log().flatten() - 1e-3)
    torch.testing.assert_close(levels[index + 1], high.flatten(), rtol=1e-3, atol=0)
    share = np.diff(cumulative.numpy(), prepend=0)
    counts = np.bincount(index.numpy(), minlength=len(share))
    often = share * ROWS > 5
    assert (
        stats.chisquare(counts[often], share[often] / share[often].sum() * counts[often].sum()).pvalue > 1e-3
    )


def test_the_gradient_goes_through_the_student_alone() -> None:
    student, teacher = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)

    class Scaled(torch.nn.Module):
        def __init__(self, inner: torch.nn.Linear) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x, t, labels, return_dict):  # type: ignore[no-untyped-def]
            return (self.inner(x.flatten(0)[:, None]).view_as(x),)

    rng = StreamRng([Piece(0, 0, 4)], rows_per_stream=4, seed=0, images=0, phase="consistency")
    nets = {"network": Scaled(student), "teacher": Scaled(teacher)}
    out = Consistency(ConsistencyConfig()).loss(
        nets, {"image": torch.zeros(4, 1, 2, 2)}, LabelDropout(None, 0), at(0), rng
    )
    out.loss_B.mean().backward()
    assert student.weight.grad is not None
    assert teacher.weight.grad is None


@pytest.mark.parametrize("steps", [0, 3])
def test_teacher_and_student_drop_the_same_units(steps: int) -> None:
    """As in the authors' `karras_diffusion.py`, which restores the generator between the two passes."""
    family = DiffusionConfig(
        network=UNetConfig.tiny().model_copy(update={"dropout": 0.3}),
        objective=ConsistencyConfig(),
        sampling=ConsistencySampling(),
    ).build(DataSpec(1, 8, 8))
    strategy = Single(Placement())
    install(family, strategy, seed=0)
    nets = strategy.view("network")
    dropped: dict[str, list[torch.Tensor]] = {"network": [], "teacher": []}
    for name, masks in dropped.items():
        for part in nets[name].modules():
            if isinstance(part, torch.nn.Dropout):
                part.register_forward_hook(lambda _, __, out, masks=masks: masks.append(out == 0))
    batch = {"image": torch.rand(16, 1, 8, 8) * 2 - 1}
    rng = StreamRng([Piece(0, 0, 16)], rows_per_stream=16, seed=0, images=0, phase="consistency")
    torch.manual_seed(steps)
    out = family.phases[0].loss(nets, batch, at(390_000), rng)
    student, teacher = dropped["network"], dropped["teacher"]
    assert len(student) == len(teacher) > 1
    assert all(torch.equal(*masks) for masks in zip(student, teacher, strict=True))
    assert 0.2 < torch.cat([mask.flatten() for mask in student]).float().mean() < 0.4
    # At 1,281 levels the same network answers nearly the same at both: what is left is no noise of masks.
    assert out.metrics["distance"].mean() < 0.2
    torch.manual_seed(steps)
    nets["network"](batch["image"], torch.zeros(16), None)
    assert torch.equal(student[0], student[len(teacher)]), "the student draws what it draws alone"
    with strategy.gathered(["teacher"]) as still:
        assert not any(part.training for part in still["teacher"].modules())


def test_the_loss_is_computed_in_float32() -> None:
    config = DiffusionConfig(objective=ConsistencyConfig(), sampling=ConsistencySampling())
    assert [phase.float32 for phase in config.build(DataSpec(1, 8, 8)).phases] == [True]


def test_one_and_two_steps_are_algorithm_one() -> None:
    objective = Consistency(ConsistencyConfig())
    network = Answer(lambda x, t: x * 0.1 + t.view(-1, 1, 1, 1) * 1e-3)
    guided = Guided(network, None, 1.0, 0)
    noise = SampleRng(0, range(3)).normal(1, 4, 4)

    def f(x: torch.Tensor, sigma: float) -> torch.Tensor:
        return objective.consistency(network_only, x, torch.full((3,), sigma))

    def network_only(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x * 0.1 + t.view(-1, 1, 1, 1) * 1e-3

    one = objective.sample(guided, noise, ConsistencySampling(), SampleRng(1, range(3)), clip=False)
    torch.testing.assert_close(one, f(80 * noise, 80.0))
    assert len(network.seen) == 1
    options = ConsistencySampling(steps=2, sigmas=(0.821,))
    two = objective.sample(guided, noise, options, SampleRng(1, range(3)), clip=False)
    again = SampleRng(1, range(3)).normal(1, 4, 4)
    expected = f(f(80 * noise, 80.0) + math.sqrt(0.821**2 - 0.002**2) * again, 0.821)
    torch.testing.assert_close(two, expected)
    assert len(network.seen) == 3
    middle = objective.later_sigmas(ConsistencySampling(steps=2, sigmas=None))
    assert middle == pytest.approx([((80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7])


def test_two_steps_meet_at_the_papers_noise_level() -> None:
    """Song & Dhariwal 2024, sec. 4: 0.821 at a standard deviation of 0.5, so twice that on latents."""
    two = ConsistencySampling(steps=2)
    assert Consistency(ConsistencyConfig()).later_sigmas(two) == [0.821]
    assert Consistency(ConsistencyConfig(), latents=True).later_sigmas(two) == pytest.approx([1.642])
    three = ConsistencySampling(steps=3)
    evenly = Consistency(ConsistencyConfig()).later_sigmas(three.model_copy(update={"sigmas": None}))
    assert Consistency(ConsistencyConfig()).later_sigmas(three) == evenly and len(evenly) == 2
    untrained = Consistency(ConsistencyConfig(sigma_max=0.5))
    assert untrained.later_sigmas(two) == untrained.later_sigmas(two.model_copy(update={"sigmas": None}))

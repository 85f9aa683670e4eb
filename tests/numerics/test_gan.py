"""Losses, penalties and sampling of adversarial networks against closed forms."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError
from scipy import stats
from torch import Tensor, nn

from sfumato.core.batch import DataSpec, Piece
from sfumato.core.family import SampleRequest
from sfumato.core.optimizer import OptimizerConfig
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng, StreamRng, seeded
from sfumato.core.schedules import LearningRate
from sfumato.families.gan.config import GanConfig
from sfumato.families.gan.gradients import gradient_norm, mixed, r1_exact, r1_finite_difference
from sfumato.families.gan.layers.blocks import ClassNorm, Score
from sfumato.families.gan.losses import LOSSES
from sfumato.families.gan.networks import DiscriminatorNet, GeneratorNet
from sfumato.families.gan.networks.dcgan import DcganConfig
from sfumato.families.gan.networks.resnet import ResnetConfig
from sfumato.families.gan.objective import ObjectiveConfig
from sfumato.families.gan.penalties.r1 import R1, R1Config
from sfumato.families.gan.sampling import SamplingConfig, Statistics, latents
from sfumato.layers.batch_norm import BatchNorm

DATA = DataSpec(1, 8, 8, classes=("a", "b", "c"))


def rng(rows: int, phase: str = "p") -> StreamRng:
    return StreamRng((Piece(0, 0, rows),), rows_per_stream=rows, seed=0, images=0, phase=phase)


class Polynomial(DiscriminatorNet):
    """D(x) = w.x + c |x|^2 / 2, whose gradient is w + c x."""

    def __init__(self, curvature: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(64, generator=torch.Generator().manual_seed(0)))
        self.c = nn.Parameter(torch.tensor([curvature]))

    def score(self, x_BCHW: Tensor, label_B: Tensor) -> Tensor:
        x = x_BCHW.flatten(1)
        return x @ self.w + self.c * x.square().sum(1) / 2


def images(rows: int) -> Tensor:
    return torch.rand(rows, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_games_are_the_papers() -> None:
    s, f = torch.linspace(-3, 3, 13), torch.linspace(2, -2, 13)
    sigmoid = torch.sigmoid
    expected = {
        "nonsaturating": (-(sigmoid(s).log() + (1 - sigmoid(f)).log()), -sigmoid(f).log()),
        "hinge": ((1 - s).clamp_min(0) + (1 + f).clamp_min(0), -f),
        "wasserstein": (f - s, -f),
        "least_squares": (0.5 * (s - 1) ** 2 + 0.5 * f**2, 0.5 * (f - 1) ** 2),
        "minimax": (-(sigmoid(s).log() + (1 - sigmoid(f)).log()), (1 - sigmoid(f)).log()),
        "relativistic": (-sigmoid(s - f).log(), -sigmoid(f).log()),
    }
    assert set(LOSSES.names()) == expected.keys()
    for name, (discriminator, generator) in expected.items():
        torch.testing.assert_close(LOSSES.make(name).discriminator(s, f), discriminator)
        torch.testing.assert_close(LOSSES.make(name).generator(f), generator)
        shifted = LOSSES.make(name).discriminator(s + 1, f + 1)
        assert torch.allclose(shifted, discriminator, atol=1e-5) != LOSSES.make(name).sees_bias, name


def test_gradient_penalty_of_a_linear_critic_is_exact() -> None:
    critic = Polynomial(0.0)
    x = mixed(images(6), torch.zeros(6, 1, 8, 8), rng(6))
    (score,) = critic([x], [torch.zeros(6)])
    norm = gradient_norm(score, x)
    torch.testing.assert_close(norm, critic.w.norm().expand(6))
    (norm - 1).square().mean().backward()
    length = critic.w.detach().norm()
    torch.testing.assert_close(critic.w.grad, 2 * (length - 1) * critic.w.detach() / length)


def test_points_between_lie_on_the_line() -> None:
    real, fake = images(5), -images(5)
    x = mixed(real, fake, rng(5))
    share = rng(5).uniform(1, 1, 1)
    torch.testing.assert_close(x.detach(), share * real + (1 - share) * fake)
    assert x.requires_grad


def test_exact_r1_is_the_closed_form_with_its_gradient() -> None:
    critic, x = Polynomial(0.7), images(6)
    penalty, score = r1_exact(critic, x, torch.zeros(6))
    slope = critic.w.detach() + 0.7 * x.flatten(1)
    torch.testing.assert_close(penalty, slope.square().sum(1))
    torch.testing.assert_close(score, critic.score(x, torch.zeros(6)))
    penalty.sum().backward()
    torch.testing.assert_close(critic.w.grad, 2 * slope.sum(0))
    torch.testing.assert_close(critic.c.grad, 2 * (slope * x.flatten(1)).sum().view(1))


def test_finite_difference_r1_has_the_closed_form_as_its_mean() -> None:
    """Also its gradient; a quadratic critic has no error but the chance of the directions."""
    critic, rows = Polynomial(0.7), 20_000
    x = images(1).expand(rows, -1, -1, -1)
    penalty, _ = r1_finite_difference(critic, x, torch.zeros(rows), rng(rows), step=0.01)
    slope = critic.w.detach() + 0.7 * x[0].flatten()
    exact = slope.square().sum().item()
    assert penalty.mean().item() == pytest.approx(exact, rel=5 * math.sqrt(2 / rows))
    assert penalty.std().item() == pytest.approx(math.sqrt(2) * exact, rel=0.1)
    penalty.mean().backward()
    cosine = nn.functional.cosine_similarity(critic.w.grad, slope, dim=0)
    assert cosine.item() > 0.99
    assert critic.w.grad.norm().item() == pytest.approx(2 * slope.norm().item(), rel=0.1)


def test_finite_difference_is_near_the_exact_penalty_of_a_network() -> None:
    with seeded(2):
        network = DcganConfig(channels=(16,), discriminator_norm="spectral")
        critic = network.build_discriminator(DATA, classes=3, bias=True)
    x = images(1).expand(4_000, -1, -1, -1)
    label = torch.ones(4_000, dtype=torch.int64)
    exact, _ = r1_exact(critic, x[:1], label[:1])
    estimate, _ = r1_finite_difference(critic, x, label, rng(4_000), step=0.01)
    assert estimate.mean().item() == pytest.approx(exact.item(), rel=5 * math.sqrt(2 / 4_000))


def test_lazy_penalty_counts_for_the_steps_that_it_stands_for() -> None:
    config = GanConfig(
        network=DcganConfig(channels=(8,)), objective=ObjectiveConfig(r1=R1Config(weight=3.0, every=4))
    )
    family = config.build(DATA)
    phase = next(phase for phase in family.phases if phase.name == "r1")
    assert (phase.every, phase.second_order) == (4, True)
    with seeded(3):
        critic = family.nets["discriminator"].build()
    batch = {"image": images(4), "label": torch.tensor([0, 1, 2, 0])}
    out = phase.loss({"discriminator": critic}, batch, Progress(0, 0, 10, 4), rng(4))
    expected, _ = r1_exact(critic, batch["image"], batch["label"])
    torch.testing.assert_close(out.loss_B, 4 * 3.0 / 2 * expected)


@pytest.mark.parametrize(
    ("every", "critic_steps", "cycle", "steps"),
    [((16,), 1, 17, 16), ((4,), 3, 13, 12), ((16, 8), 1, 19, 16)],
)
def test_adam_moves_as_far_and_remembers_as_long_as_without_lazy_penalties(
    every: tuple[int, ...], critic_steps: int, cycle: int, steps: int
) -> None:
    """Karras et al. 2020, app. B: in a cycle, `cycle` updates stand for `steps` of the phase itself."""
    given = OptimizerConfig(name="adam", lr=LearningRate(peak=0.01, decay="linear"), betas=(0.5, 0.99))
    objective = ObjectiveConfig(
        critic_steps=critic_steps, penalties=tuple(R1(weight=1.0, every=k) for k in every)
    )
    config = GanConfig(objective=objective, discriminator_optimizer=given, generator_optimizer=given)
    nets = config.build(DATA).nets
    assert nets["generator"].optimizer == given
    optimizer = nets["discriminator"].optimizer
    at = Progress(320, 5, 640, 64)
    assert optimizer.lr.at(at) == pytest.approx(given.lr.at(at) * steps / cycle)
    parameter = nn.Parameter(torch.zeros(1))
    adam = optimizer.build({"w": parameter})
    for _ in range(cycle):  # a constant gradient moves a weight by exactly the learning rate
        parameter.grad = torch.ones(1)
        adam.step()
    assert parameter.item() == pytest.approx(-0.01 * steps, rel=1e-4)
    first, second = (adam.state[parameter][name].item() for name in ("exp_avg", "exp_avg_sq"))
    for _ in range(cycle):
        parameter.grad = torch.zeros(1)
        adam.step()
    assert adam.state[parameter]["exp_avg"].item() == pytest.approx(first * 0.5**steps, rel=1e-3)
    assert adam.state[parameter]["exp_avg_sq"].item() == pytest.approx(second * 0.99**steps, rel=1e-3)


def test_an_optimizer_is_left_as_given_without_penalties_or_on_request() -> None:
    adam, sgd = OptimizerConfig(name="adam"), OptimizerConfig(name="sgd")
    lazy = ObjectiveConfig(r1=R1Config(every=16))
    assert lazy.corrected(adam).lr.peak == pytest.approx(adam.lr.peak * 16 / 17)
    assert ObjectiveConfig().corrected(adam) == adam and lazy.corrected(sgd) == sgd
    assert lazy.model_copy(update={"corrected_adam": False}).corrected(adam) == adam


def test_a_finite_difference_is_that_of_float32_under_autocast() -> None:
    """In bfloat16 a score is rounded by 2^-9, and the difference of two of them is lost."""
    network = DcganConfig(channels=(8,), discriminator_norm="none")
    with seeded(0):
        critic = network.build_discriminator(DATA, classes=3, bias=True)
    real, label = images(16), torch.arange(16) % 3
    plain, score = r1_finite_difference(critic, real, label, rng(16), step=0.01)
    with torch.autocast("cpu", torch.bfloat16):
        under, score_under = r1_finite_difference(critic, real, label, rng(16), step=0.01)
        half, _ = r1_finite_difference(critic, real.bfloat16(), label, rng(16), step=0.01)
        assert torch.is_autocast_enabled("cpu")
    torch.testing.assert_close(under, plain, rtol=1e-5, atol=0)
    torch.testing.assert_close(score_under, score, rtol=1e-5, atol=1e-7)
    again, _ = r1_finite_difference(critic, real.bfloat16().float(), label, rng(16), step=0.01)
    torch.testing.assert_close(half, again, rtol=1e-5, atol=0)


def test_a_finite_difference_needs_no_second_order() -> None:
    finite = ObjectiveConfig(r1=R1Config(estimator="finite_difference"))
    assert not any(phase.second_order for phase in GanConfig(objective=finite).build(DATA).phases)
    penalty = ObjectiveConfig(loss="wasserstein", gradient_penalty=10)
    phases = GanConfig(objective=penalty).build(DATA).phases
    assert [phase.second_order for phase in phases] == [True, False]


def test_projection_score_is_the_papers_formula() -> None:
    with seeded(4):
        score = Score("none", 5, 3, bias=True)
    phi, label = torch.randn(4, 5), torch.tensor([2, 0, 1, 2])
    psi = phi @ score.linear.weight[0] + score.linear.bias
    expected = torch.stack([psi[i] + score.embedding.weight[label[i]] @ phi[i] for i in range(4)])
    torch.testing.assert_close(score(phi, label), expected)


def test_class_norm_is_normalisation_with_the_classes_own_gain() -> None:
    layer = ClassNorm("batch", 2, 3)
    with seeded(5), torch.no_grad():
        nn.init.normal_(layer.gain.weight)
        nn.init.normal_(layer.bias.weight)
        x = torch.randn(4, 2, 3, 3)
    label = torch.tensor([1, 2, 2, 0])
    normal = (x - x.mean((0, 2, 3), keepdim=True)) / x.var((0, 2, 3), correction=0, keepdim=True).sqrt()
    for row, name in enumerate(label):
        expected = (
            normal[row] * layer.gain.weight[name][:, None, None] + layer.bias.weight[name][:, None, None]
        )
        torch.testing.assert_close(layer(x, label)[row], expected, rtol=1e-4, atol=1e-4)


def test_batch_statistics_of_real_and_generated_images_are_kept_apart() -> None:
    with seeded(6):
        critic = DcganConfig(channels=(8, 8), discriminator_norm="batch").build_discriminator(
            DATA, classes=0, bias=True
        )
    real, fake, label = images(4), 0.1 * images(4), torch.zeros(4, dtype=torch.int64)
    both = critic([real, fake], [label, label])
    torch.testing.assert_close(both[0], critic([real], [label])[0])
    torch.testing.assert_close(both[1], critic([fake], [label])[0])


def test_truncated_latents_have_the_truncated_normal_distribution() -> None:
    z = latents(SampleRng(0, range(400)), 50, 0.8).flatten()
    assert z.abs().max() <= 0.8
    assert stats.kstest(z.double().numpy(), stats.truncnorm(-0.8, 0.8).cdf).pvalue > 1e-3
    assert stats.kstest(latents(SampleRng(0, range(400)), 50, None).flatten().numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("network", [DcganConfig(channels=(8,)), ResnetConfig(channels=(8,))])
def test_samples_follow_the_weights(network: DcganConfig | ResnetConfig) -> None:
    """Standing statistics are those of the weights at hand, and are taken anew when these change."""
    options = SamplingConfig(statistics=64)
    family = GanConfig(latent=4, network=network, sampling=options).build(DATA)
    with seeded(7):
        generator = family.nets["generator"].build()

    def draw(generator: nn.Module) -> Tensor:
        request = SampleRequest(num=3, conditions={"label": torch.tensor([0, 1, 2])}, options=options)
        with torch.no_grad():
            return GanConfig.build(GanConfig(latent=4, network=network, sampling=options), DATA).sample(
                {"ema": generator}, request, Progress.at(0), SampleRng(1, range(3))
            )

    first = draw(generator)
    request = SampleRequest(num=3, conditions={"label": torch.tensor([0, 1, 2])}, options=options)
    with torch.no_grad():
        assert torch.equal(
            family.sample({"ema": generator}, request, Progress.at(0), SampleRng(1, range(3))), first
        )
        for parameter in generator.parameters():
            parameter.mul_(1.3)
        changed = family.sample({"ema": generator}, request, Progress.at(0), SampleRng(1, range(3)))
    assert not torch.equal(changed, first)
    assert torch.equal(changed, draw(generator)), "statistics of old weights"


@pytest.mark.parametrize(
    ("network", "objective", "says"),
    [
        (DcganConfig(channels=(8,) * 4), ObjectiveConfig(), "at most 3 entries"),
        (DcganConfig(discriminator_channels=(8,) * 4), ObjectiveConfig(), "use at most 3"),
        (DcganConfig(discriminator_norm="batch"), ObjectiveConfig(r1=R1Config()), "spectral or none"),
        (DcganConfig(discriminator_norm="none"), ObjectiveConfig(loss="wasserstein"), "gradient_penalty=10"),
    ],
)
def test_what_cannot_work_is_said(network: DcganConfig, objective: ObjectiveConfig, says: str) -> None:
    found = GanConfig(network=network, objective=objective).problems(DATA)
    assert found
    assert says in found[0]


def discriminator(network: dict[str, object]) -> torch.nn.Module:
    config = GanConfig.model_validate({"network": {"channels": [64, 64], **network}})
    data = DataSpec(channels=1, height=16, width=16, classes=tuple("0123456789"))
    with seeded(0):
        net: torch.nn.Module = config.build(data).nets["discriminator"].build()
    return net


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_weights_of_a_dcgans_score_are_small_at_the_start(norm: str) -> None:
    """All weights are from N(0, 0.02^2) (Radford et al. 2016, sec. 3)."""
    score = discriminator({"kind": "dcgan", "discriminator_norm": norm}).output
    assert score.linear.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert score.embedding.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not score.linear.bias.any()


def test_a_residual_discriminators_classes_are_orthogonal_at_the_start() -> None:
    classes = discriminator({"kind": "resnet", "discriminator_norm": "none"}).output.embedding.weight
    torch.testing.assert_close(classes @ classes.T, torch.eye(10), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["dcgan", "resnet"])
def test_a_spectral_scores_classes_start_as_torch_makes_them(kind: str) -> None:
    """The norm divides their scale out."""
    classes = discriminator({"kind": kind, "discriminator_norm": "spectral"}).output.embedding.weight
    assert classes.std().item() == pytest.approx(1, rel=0.1)


def test_settings_without_effect_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"step: 0\.1 has no effect on estimator=exact; leave it out"):
        R1Config(step=0.1)
    for fine in (R1Config(), R1Config(estimator="finite_difference", step=0.1)):
        assert R1Config.model_validate(fine.model_dump()) == fine, "a stored one has every field set"
    group = GanConfig(network=DcganConfig(channels=(8,), generator_norm="group"))
    assert group.problems(DATA) == []
    (problem,) = group.model_copy(update={"sampling": SamplingConfig(statistics=64)}).problems(DATA)
    assert problem.startswith("model.sampling.statistics: 64 has no effect on model.network.generator_norm")


@pytest.mark.parametrize("classes", [3, 64, 65, 100, 200, 1_000])
def test_standing_statistics_are_of_all_classes_evenly(classes: int) -> None:
    """Of more classes than images, those that enter lie evenly between the first and the last."""
    options, seen = SamplingConfig(statistics=64), []

    class Labels(GeneratorNet):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.weight = BatchNorm(1), nn.Parameter(torch.ones(1))

        def forward(self, z_BD: Tensor, label_B: Tensor) -> Tensor:
            seen.extend(label_B.tolist())
            return self.norm(z_BD[:, :1, None, None])

    Statistics(4, classes).update(Labels(), options)
    assert len(seen) == 64
    if classes <= 64:
        assert seen == [index % classes for index in range(64)]
        return
    gaps = {after - before for before, after in pairwise(seen)}
    assert len(set(seen)) == 64 and seen[0] == 0 and classes - seen[-1] <= max(gaps) + 1
    assert max(gaps) - min(gaps) <= 1

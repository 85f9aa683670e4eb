"""Remedies of adversarial training against their papers' formulas, written anew."""

from __future__ import annotations

import pytest
import torch
from members import batch, build, view
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.core.batch import DataSpec, Piece
from sfumato.core.optimizer import OptimizerConfig
from sfumato.core.progress import Progress
from sfumato.core.rng import StreamRng, seeded
from sfumato.core.schedules import LearningRate
from sfumato.errors import ConfigError
from sfumato.families.gan.config import GanConfig
from sfumato.families.gan.game import spread
from sfumato.families.gan.gradients import r1_exact
from sfumato.families.gan.layers.blocks import Score, with_planes
from sfumato.families.gan.layers.minibatch import MinibatchDiscrimination, MinibatchStd
from sfumato.families.gan.losses import LOSSES
from sfumato.families.gan.remedies.consolidation import Consolidation, ConsolidationConfig
from sfumato.families.gan.remedies.replay import EARLIER, ReplayConfig

DATA = DataSpec(1, 8, 8, classes=("a", "b", "c"))
AT = Progress(step=0, images=0, total_images=100, batch=4)
PLAIN = {"kind": "dcgan", "channels": [8], "generator_norm": "group", "discriminator_norm": "none"}


def rng(rows: int, phase: str = "p") -> StreamRng:
    return StreamRng((Piece(0, 0, rows),), rows_per_stream=rows, seed=0, images=0, phase=phase)


def gan(objective: dict[str, object], **network: object) -> GanConfig:
    return GanConfig.model_validate(
        {"latent": 4, "network": {**PLAIN, **network}, "objective": objective, "condition": "auto"}
    )


def test_smoothed_labels_are_targets_below_one() -> None:
    s, f = torch.linspace(-3, 3, 13), torch.linspace(2, -2, 13)
    for name in ("nonsaturating", "minimax"):
        found = LOSSES.make(name, smoothing=0.1).discriminator(s, f)
        real = F.binary_cross_entropy_with_logits(s, torch.full_like(s, 0.9), reduction="none")
        fake = F.binary_cross_entropy_with_logits(f, torch.zeros_like(f), reduction="none")
        torch.testing.assert_close(found, real + fake)


def test_a_relativistic_generator_is_the_discriminator_with_the_parts_exchanged() -> None:
    s, f = torch.linspace(-3, 3, 13), torch.linspace(2, -1, 13)
    game = LOSSES.make("relativistic")
    torch.testing.assert_close(game.discriminator(s, f), -torch.sigmoid(s - f).log())
    torch.testing.assert_close(game.generator_against(s, f), game.discriminator(f, s))


def test_penalties_within_the_loss_are_those_of_real_and_generated_images() -> None:
    """R3GAN's L_D = softplus(f - s) + gamma / 2 (R1 + R2), by separate calls of the discriminator."""
    slopes = [{"kind": kind, "every": 1, "joined": True, "weight": 0.7} for kind in ("r1", "r2")]
    family = gan({"loss": "relativistic", "penalties": slopes}).build(DATA)
    nets, rows = build(family), batch()
    assert [phase.name for phase in family.phases] == ["discriminator", "generator"]
    assert family.phases[0].second_order
    assert family.nets["discriminator"].optimizer == GanConfig().discriminator_optimizer, "no further steps"
    found = family.phases[0].loss(view(nets, "discriminator"), rows, AT, rng(4))
    fake = nets["generator"](rng(4).normal(4), rows["label"])
    r1, s = r1_exact(nets["discriminator"], rows["image"], rows["label"])
    r2, f = r1_exact(nets["discriminator"], fake, rows["label"])
    torch.testing.assert_close(found.loss_B, F.softplus(f - s) + 0.35 * (r1 + r2))
    torch.testing.assert_close(found.metrics["r2"], r2.detach())


def test_a_joined_finite_difference_needs_no_second_order_and_no_autocast() -> None:
    slope = {"kind": "r2", "every": 1, "joined": True, "estimator": "finite_difference", "weight": 2.0}
    family = gan({"penalties": [slope]}).build(DATA)
    phase = family.phases[0]
    assert not phase.second_order and phase.float32
    nets, rows = build(family), batch()
    found = phase.loss(view(nets, "discriminator"), rows, AT, rng(4))
    assert (found.metrics["r2"] >= 0).all()
    plain = gan({}).build(DATA).phases[0].loss(view(nets, "discriminator"), rows, AT, rng(4))
    torch.testing.assert_close(found.loss_B, plain.loss_B + found.metrics["r2"])


@pytest.mark.parametrize("kind", ["r2", "zero_centred"])
def test_penalties_elsewhere_see_generated_images_or_points_between(kind: str) -> None:
    family = gan({"penalties": [{"kind": kind, "every": 2, "weight": 3.0}]}).build(DATA)
    phase, nets, rows = family.phases[-1], build(family), batch()
    assert (phase.name, phase.every) == (kind, 2)
    found = phase.loss(view(nets, "discriminator"), rows, AT, rng(4))
    noise = rng(4)
    at = nets["generator"](noise.normal(4), rows["label"]).detach()
    if kind == "zero_centred":
        share = noise.uniform(1, 1, 1)
        at = share * rows["image"] + (1 - share) * at
    expected, _ = r1_exact(nets["discriminator"], at, rows["label"])
    torch.testing.assert_close(found.loss_B, 2 * 3.0 / 2 * expected)


def test_the_gradient_penalty_may_be_centred_at_zero() -> None:
    settings = {"loss": "wasserstein", "gradient_penalty": 10.0}
    nets, rows = build(gan(settings).build(DATA)), batch()
    losses = []
    for centre in (1, 0):
        family = gan({**settings, "gradient_penalty_centre": centre}).build(DATA)
        out = family.phases[0].loss(view(nets, "discriminator"), rows, AT, rng(4))
        losses.append((out.loss_B, out.metrics["gradient_norm"]))
    (one, norm), (zero, _) = losses
    torch.testing.assert_close(zero - one, 10 * (norm.square() - (norm - 1).square()))


def test_weights_are_clipped_after_every_update() -> None:
    """WGAN's w <- clip(w, -c, c) after RMSProp's or Adam's step (Arjovsky et al. 2017, Algorithm 1)."""
    weight, free = nn.Parameter(torch.tensor([0.009, -0.0099, 0.0])), nn.Parameter(torch.zeros(3))
    settings = OptimizerConfig(name="sgd", lr=LearningRate(peak=1.0), betas=(0.0, 0.0), clip_weights=0.01)
    for parameter, config in (
        (weight, settings),
        (free, settings.model_copy(update={"clip_weights": None})),
    ):
        parameter.grad = torch.tensor([-0.1, 0.1, 0.003])
        config.build({"w": parameter}).step()
    torch.testing.assert_close(weight.data, torch.tensor([0.01, -0.01, -0.003]))
    torch.testing.assert_close(free.data, torch.tensor([0.1, -0.1, -0.003]))


def test_minibatch_discrimination_is_the_papers_double_sum() -> None:
    with seeded(0):
        layer, phi = MinibatchDiscrimination(5, 3, width=2), torch.randn(4, 5)
    found = layer(phi)
    assert found.shape == (4, 8)
    torch.testing.assert_close(found[:, :5], phi)
    m = torch.stack([torch.einsum("f,fkw->kw", row, layer.tensor) for row in phi])
    for i in range(4):
        for b in range(3):
            expected = sum((-(m[i, b] - m[j, b]).abs().sum()).exp() for j in range(4) if j != i)
            torch.testing.assert_close(found[i, 5 + b], expected)


def test_a_collapsed_batch_is_as_near_as_can_be() -> None:
    """Equal images have the largest features that minibatch discrimination knows: one for each other row."""
    with seeded(0):
        layer, phi = MinibatchDiscrimination(5, 3), torch.randn(1, 5).expand(6, -1)
    torch.testing.assert_close(layer(phi)[:, 5:], torch.full((6, 3), 5.0))


def test_the_minibatch_standard_deviation_is_that_of_each_group() -> None:
    with seeded(1):
        x = torch.randn(8, 3, 2, 2)
    found = MinibatchStd(4)(x)
    assert found.shape == (8, 4, 2, 2)
    for group in (slice(0, 4), slice(4, 8)):
        expected = x[group].std(0, correction=0).mean()
        torch.testing.assert_close(found[group, 3], expected.expand(4, 2, 2))
    # Rows that are cut at the border of a group give the same as all at once, wherever they are computed.
    torch.testing.assert_close(torch.cat([MinibatchStd(4)(part) for part in x.split(4)]), found)
    with pytest.raises(ConfigError, match="a multiple of 4"):
        MinibatchStd(4)(x[:6])


def test_an_auxiliary_classifier_has_its_cross_entropy_in_both_losses() -> None:
    config = gan({"class_weight": 0.5}, label_score="auxiliary")
    family = config.build(DATA)
    nets, rows = build(family), batch()
    fake = nets["generator"](rng(4).normal(4), rows["label"]).detach()
    discriminator = nets["discriminator"]

    def judged(image: Tensor) -> tuple[Tensor, Tensor]:
        phi = discriminator.features(image, rows["label"])
        entropy = F.cross_entropy(discriminator.output.classifier(phi), rows["label"], reduction="none")
        return discriminator.output.linear(phi).squeeze(1), entropy

    (s, real), (f, generated) = judged(rows["image"]), judged(fake)
    out = family.phases[0].loss(view(nets, "discriminator"), rows, AT, rng(4))
    torch.testing.assert_close(out.loss_B, F.softplus(-s) + F.softplus(f) + 0.5 * (real + generated))
    out = family.phases[1].loss(view(nets, "generator"), rows, AT, rng(4))
    torch.testing.assert_close(out.loss_B, F.softplus(-f) + 0.5 * generated)


def test_feature_matching_is_the_distance_of_the_means() -> None:
    family = gan({"feature_matching": 3.0}).build(DATA)
    nets, rows = build(family), batch()
    fake = nets["generator"](rng(4).normal(4), rows["label"])
    phi = [nets["discriminator"].features(x, rows["label"]) for x in (rows["image"], fake)]
    expected = 3 * (phi[0].mean(0) - phi[1].mean(0)).square().sum()
    out = family.phases[1].loss(view(nets, "generator"), rows, AT, rng(4))
    score = nets["discriminator"].score(fake, rows["label"])
    torch.testing.assert_close(out.loss_B, F.softplus(-score) + expected)


def test_concatenated_classes_are_planes_of_their_own() -> None:
    x, label = torch.randn(2, 1, 4, 4), torch.tensor([2, 0])
    found = with_planes(x, label, 3)
    torch.testing.assert_close(found[:, :1], x)
    assert found[:, 1:].mean((2, 3)).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert Score("none", 4, 3, bias=True, how="concatenation").embedding is None


def test_spread_is_one_for_images_as_far_apart_as_real_ones_and_zero_for_one_image() -> None:
    with seeded(0):
        real = torch.randn(8, 1, 4, 4)
    assert spread(real + 3, real).item() == pytest.approx(1, abs=1e-5)
    assert spread(0.25 * real, real).item() == pytest.approx(0.25, abs=1e-5)
    assert spread(real[:1].expand(8, -1, -1, -1), real).item() == 0
    out = gan({}).build(DATA)
    assert out.phases[1].loss(view(build(out), "generator"), batch(), AT, rng(4)).metrics["spread"] > 0


@pytest.mark.parametrize(
    ("objective", "network", "says"),
    [
        ({"path_length": {}}, {}, "no styles"),
        ({"class_weight": 2.0}, {}, "no effect without model.network.label_score=auxiliary"),
        ({"gradient_penalty_centre": 0}, {}, "no effect without gradient_penalty"),
        ({"penalties": [{"kind": "r2"}]}, {"discriminator_norm": "batch"}, "spectral or none"),
    ],
)
def test_what_has_no_part_to_act_on_is_said(
    objective: dict[str, object], network: dict[str, object], says: str
) -> None:
    found = gan(objective, **network).problems(DATA)
    assert any(says in line for line in found), found


def test_a_joined_penalty_is_of_every_step() -> None:
    with pytest.raises(ValidationError, match="every=16; set every=1"):
        gan({"penalties": [{"kind": "r1", "joined": True}]})


def test_a_clipped_critic_is_bounded() -> None:
    clipped = gan({"loss": "wasserstein"}).model_copy(
        update={"discriminator_optimizer": OptimizerConfig(name="adam", clip_weights=0.01)}
    )
    assert clipped.problems(DATA) == []
    assert "bounded critic" in gan({"loss": "wasserstein"}).problems(DATA)[0]


def test_consistency_adds_the_squared_change_of_scores() -> None:
    """By separate calls of the discriminator on images that are changed once more from the same noise."""
    settings = {"real": 3.0, "fake": 0.5}
    family = gan({"consistency": settings}).build(DATA)
    nets, rows = build(family), batch()
    found = family.phases[0].loss(view(nets, "discriminator"), rows, AT, rng(4))
    plain = gan({}).build(DATA).phases[0].loss(view(nets, "discriminator"), rows, AT, rng(4))
    draws = rng(4)
    fake = nets["generator"](draws.normal(4), rows["label"]).detach()
    change = torch.zeros(4)
    for image, factor in ((rows["image"], 3.0), (fake, 0.5)):
        flips, down, right = draws.uniform() < 0.5, draws.integers(3), draws.integers(3)
        moved = torch.zeros_like(image)
        for row in range(4):
            source = image[row].flip(2) if flips[row] else image[row]
            padded = F.pad(source, (1, 1, 1, 1))
            moved[row] = padded[:, down[row] : down[row] + 8, right[row] : right[row] + 8]
        a, b = (nets["discriminator"]([x], [rows["label"]])[0] for x in (image, moved))
        change = change + factor * (a - b).square()
    torch.testing.assert_close(found.loss_B, plain.loss_B + change, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.metrics["consistency"], change.detach(), rtol=1e-4, atol=1e-5)


def test_an_earlier_self_is_kept_where_stages_begin_and_draws_its_share() -> None:
    stages = [{"images": 8, "classes": [1]}, {"images": 21, "classes": [0, 1]}]
    config = ReplayConfig.model_validate({"share": 0.5, "stages": stages})
    kept = [
        images
        for images in range(4, 40, 4)
        if config.decay(Progress(step=images // 4, images=images, total_images=100, batch=4)) == 0
    ]
    assert kept == [8, 24], "after the steps in which 8 and 21 images are reached"
    family = gan({"replay": config.model_dump()}).build(DATA)
    nets = build(family)
    rows = {"image": torch.full((64, 1, 8, 8), 0.25), "label": torch.full((64,), 2)}
    before, after = AT, Progress(step=2, images=8, total_images=100, batch=4)
    assert family.prepare(nets, rows, before, rng(64)) is rows
    mixed = family.prepare(nets, rows, after, rng(64))
    again = mixed["label"] == 1
    assert set(mixed["label"].tolist()) == {1, 2}
    assert 20 <= int(again.sum()) <= 44
    assert torch.equal(mixed["image"][~again], rows["image"][~again])
    draws = rng(64)
    draws.uniform(), draws.integers(1)
    label = torch.where(again, 1, 2)
    made = nets[EARLIER](draws.normal(4), label).clamp(-1, 1)
    torch.testing.assert_close(mixed["image"][again], made[again].detach())


def test_replay_of_unknown_classes_or_by_a_batch_normalised_generator_is_refused() -> None:
    stages = {"stages": [{"images": 8, "classes": [5]}]}
    (line,) = gan({"replay": stages}).problems(DATA)
    assert line == "model.objective.replay.stages: 5 is not a class; the data has 0 to 2"
    stages = {"stages": [{"images": 8, "classes": [0]}]}
    (line,) = gan({"replay": stages}, generator_norm="batch").problems(DATA)
    assert "set model.network.generator_norm=group" in line
    with pytest.raises(ValidationError, match="in the order of their images"):
        ReplayConfig.model_validate({"stages": [*stages["stages"], *stages["stages"]]})


class Quadratic(torch.nn.Module):
    """Row i's loss is a_i . theta, so that its squared gradient is known."""

    def __init__(self, theta: list[float]) -> None:
        super().__init__()
        self.theta = torch.nn.Parameter(torch.tensor(theta))


def test_consolidation_balances_two_quadratic_tasks_as_the_closed_form_does() -> None:
    """Task 2 alone pulls weights to b; held, they end at (b + weight F theta*) / (1 + weight F)."""
    config = ConsolidationConfig(weight=3.0, stages=(8,), images=4, share=1)
    held, model, kept = Consolidation(config), Quadratic([0.5, -1.0, 2.0]), Quadratic([0.5, -1.0, 2.0])
    state = held.first(model)
    slopes_B3 = torch.tensor([[1.0, 0.0, 2.0], [3.0, 1.0, 0.0]])

    def at(images: int) -> Progress:
        return Progress(step=0, images=images, total_images=100, batch=2, state=state)

    assert held.sums(model, slopes_B3 @ model.theta, at(2), rng(2)) == {}, "before the window"
    for images in (4, 6):
        assert held.penalty(model, kept, at(images)) is None
        sums = held.sums(model, slopes_B3 @ model.theta, at(images), rng(2))
        halves = [held.sums(model, slopes_B3[[row]] @ model.theta, at(images), rng(1)) for row in (0, 1)]
        for name, value in sums.items():
            torch.testing.assert_close(halves[0][name] + halves[1][name], value)
        state = held.advance(state, sums, at(images + 2))
    fisher = slopes_B3.square().mean(0)
    torch.testing.assert_close(state["consolidation.fisher.0"], fisher)
    assert not state["consolidation.squares.0"].any() and not state["consolidation.rows"]

    aim = torch.tensor([2.0, 3.0, -1.0])
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=50)

    def closure() -> Tensor:
        optimizer.zero_grad()
        penalty = held.penalty(model, kept, at(8))
        assert penalty is not None
        loss = (model.theta - aim).square().sum() / 2 + penalty
        loss.backward()
        return loss

    optimizer.step(closure)
    star = kept.theta.detach()
    expected = (aim + 3 * fisher * star) / (1 + 3 * fisher)
    torch.testing.assert_close(model.theta.detach(), expected, rtol=1e-5, atol=1e-5)
    assert abs(float(expected[0] - star[0])) < 0.1 < abs(float(expected[1] - star[1])), "important, less so"


def test_a_generator_is_held_from_the_end_of_a_stage_on() -> None:
    family = gan({"consolidation": {"stages": [4], "images": 4, "weight": 2.0, "share": 1}}).build(DATA)
    nets, rows = build(family), {"image": torch.zeros(4, 1, 8, 8), "label": torch.arange(4) % 3}
    phase = next(phase for phase in family.phases if phase.name == "generator")
    assert phase.reads_weights and EARLIER in family.nets
    before = Progress(step=0, images=0, total_images=8, batch=4, state=family.state)
    out = phase.loss(nets, rows, before, rng(4))
    fisher = [torch.zeros_like(p) for p in nets["generator"].parameters()]
    for loss in phase.loss(nets, rows, before, rng(4)).loss_B:  # one by one, by backward
        nets["generator"].zero_grad()
        loss.backward(retain_graph=True)
        for total, p in zip(fisher, nets["generator"].parameters(), strict=True):
            total += p.grad.square() / 4
    after = Progress(step=1, images=4, total_images=8, batch=4)
    state = family.advance(family.state, out.sums, after)
    after = Progress(step=1, images=4, total_images=8, batch=4, state=state)
    with torch.no_grad():
        for p in nets["generator"].parameters():
            p += 0.1
    held = phase.loss(nets, rows, after, rng(4))
    expected = sum(float(f.sum()) for f in fisher) * 0.01  # weight 2, halved
    assert float(held.metrics["consolidation"]) == pytest.approx(expected, rel=1e-4)
    assert "consolidation" not in out.metrics


def test_consolidation_whose_stages_are_not_those_of_replay_is_refused() -> None:
    replay = {"stages": [{"images": 8, "classes": [0]}]}
    (line,) = gan({"replay": replay, "consolidation": {"stages": [9]}}).problems(DATA)
    assert line == "model.objective.consolidation.stages: [9], and those of replay end at [8]; use the same"

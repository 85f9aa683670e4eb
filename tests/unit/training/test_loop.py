"""The loop against a hand-written one, and what it does at step boundaries."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from sfumato.core.batch import MicroBatch, Piece
from sfumato.core.family import EmaOf, LossOut, Phase, SampleRequest, Trainable
from sfumato.core.optimizer import OptimizerConfig
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng
from sfumato.core.schedules import LearningRate
from sfumato.parallel import Placement
from sfumato.parallel.strategies.single import Single, skipping
from sfumato.training.config import TrainSettings
from sfumato.training.loop import Hook, Trainer, install
from sfumato.training.skips import Bad, NotFinite

OPTIMIZER = OptimizerConfig(name="adamw", lr=LearningRate(peak=0.01, warmup_images=40, decay="cosine"))
SETTINGS = {"batch": 8, "clip_grad_norm": 0.05, "log_every": 16, "preview_samples": 0}


class TwoNets:
    """Two networks that train each other, one of them twice a step, and an average: a GAN's shape."""

    samplers = ("average",)

    def __init__(self, *, every: int = 1, scale: float = 1.0) -> None:
        self.seen: list[tuple[str, int, int]] = []
        self._every = every
        self._scale = scale

    @property
    def nets(self) -> dict[str, Trainable | EmaOf]:
        def build() -> nn.Module:
            return nn.Linear(4, 4)

        return {
            "g": Trainable(build=build, optimizer=OPTIMIZER),
            "d": Trainable(build=build, optimizer=OPTIMIZER),
            "average": EmaOf(source="g", decay=lambda progress: 0.9),
        }

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (
            Phase(name="critic", trains="d", loss=self.critic, repeats=2),
            Phase(name="generator", trains="g", loss=self.generator, every=self._every),
        )

    def prepare(self, nets, batch, progress, rng):
        return batch

    def critic(self, nets, batch, progress, rng) -> LossOut:
        assert not next(nets["g"].parameters()).requires_grad
        self.seen.append(("critic", progress.step, int(batch["image"][0, 0])))
        return LossOut(self._scale * (nets["d"](nets["g"](rng.normal(4))) - batch["image"]).square().mean(1))

    def generator(self, nets, batch, progress, rng) -> LossOut:
        assert not next(nets["d"].parameters()).requires_grad
        self.seen.append(("generator", progress.step, int(batch["image"][0, 0])))
        return LossOut(nets["d"](nets["g"](rng.normal(4))).square().mean(1), {"extra": torch.ones(())})

    def sample(self, nets, request: SampleRequest, progress, rng: SampleRng) -> Tensor:
        return nets["average"](rng.normal(4))


def shares() -> Iterator[list[MicroBatch]]:
    """Global batch i is filled with the number i."""
    number = 0
    while True:
        yield [MicroBatch({"image": torch.full((8, 4), float(number))}, (Piece(0, 0, 8),))]
        number += 1


def trainer(family: TwoNets, *, images: int = 64, hooks=(), report=lambda p, m: None) -> Trainer:
    strategy = Single(Placement())
    install(family, strategy, seed=1)
    return Trainer(
        family,
        strategy,
        TrainSettings(images=images, **SETTINGS),
        seed=1,
        streams=1,
        hooks=hooks,
        report=report,
    )


def test_phases_repeats_and_reads() -> None:
    """A step reads two batches; the critic sees both, the generator the first; images count both."""
    family = TwoNets(every=2)
    end = trainer(family, images=48).run(shares())
    assert end == Progress(step=3, images=48, total_images=48, batch=16)
    assert family.seen == [
        ("critic", 0, 0),
        ("critic", 0, 1),
        ("generator", 0, 0),
        ("critic", 1, 2),
        ("critic", 1, 3),
        ("critic", 2, 4),
        ("critic", 2, 5),
        ("generator", 2, 4),
    ]


def test_equals_a_hand_written_loop() -> None:
    """One network, Adam, clipping, schedule and average, against plain PyTorch."""
    family = TwoNets()
    loop = trainer(family, images=160)
    strategy = loop._strategy
    before = {k: v.clone() for k, v in strategy.weights(["g", "d"])["d"].items()}
    d = nn.Linear(4, 4)
    d.load_state_dict(before)
    g = nn.Linear(4, 4)
    g.load_state_dict(strategy.weights(["g"])["g"])
    average = {k: v.clone() for k, v in g.state_dict().items()}
    optimizers = {
        "d": torch.optim.AdamW(d.parameters(), betas=(0.9, 0.99), weight_decay=0.0),
        "g": torch.optim.AdamW(g.parameters(), betas=(0.9, 0.99), weight_decay=0.0),
    }
    from sfumato.core.rng import StreamRng

    for step in range(10):
        images = step * 16
        rate = OPTIMIZER.lr.at(Progress(step, images, 160, 16))
        for net, phase, repeat in (("d", "critic", 0), ("d", "critic", 1), ("g", "generator", 0)):
            rng = StreamRng(
                (Piece(0, 0, 8),), rows_per_stream=8, seed=1, images=images + 8 * repeat, phase=phase
            )
            x = d(g(rng.normal(4)))
            loss = (x - (step * 2 + repeat)).square().mean() if net == "d" else x.square().mean()
            optimizers[net].zero_grad()
            loss.backward()
            module = {"d": d, "g": g}[net]
            nn.utils.clip_grad_norm_(module.parameters(), 0.05)
            optimizers[net].param_groups[0]["lr"] = rate
            optimizers[net].step()
            d.zero_grad()
            g.zero_grad()
        average = {k: 0.9 * v + 0.1 * g.state_dict()[k] for k, v in average.items()}
    loop.run(shares())
    found = strategy.weights(["g", "d", "average"])
    for name, expected in (("g", g.state_dict()), ("d", d.state_dict()), ("average", average)):
        for key in expected:
            torch.testing.assert_close(found[name][key], expected[key], rtol=1e-6, atol=1e-6)


def test_logs_means_once_an_interval() -> None:
    points: list[tuple[int, dict[str, float]]] = []
    trainer(TwoNets(), images=64, report=lambda p, m: points.append((p.images, m))).run(shares())
    assert [images for images, _ in points] == [16, 32, 48, 64]
    assert points[0][1]["train/generator/extra"] == 1.0
    expected = {"train/critic/loss", "train/generator/loss", "train/critic/grad_norm", "train/g/lr"}
    assert expected <= points[0][1].keys()
    assert 0 <= points[0][1]["train/data_wait_fraction"] <= 1


def test_hooks_fire_at_the_first_step_after_each_multiple_and_at_the_end() -> None:
    fired: list[int] = []
    trainer(TwoNets(), images=112, hooks=[Hook(40, lambda p: fired.append(p.images))]).run(shares())
    assert fired == [48, 80, 112]


class Explodes(TwoNets):
    """Its critic's loss is not finite on the batches that hold the given numbers."""

    def __init__(self, *numbers: int) -> None:
        super().__init__()
        self._numbers = numbers

    def critic(self, nets, batch, progress, rng) -> LossOut:
        loss = super().critic(nets, batch, progress, rng).loss_B
        return LossOut(loss * (torch.inf if int(batch["image"][0, 0]) in self._numbers else 1.0))


def test_an_update_that_is_not_finite_changes_nothing_and_is_in_no_mean(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Batch 2 explodes, in the critic's third update: the critic ends as if it had never been read."""
    points: list[dict[str, float]] = []
    loop = trainer(Explodes(2), images=48, report=lambda p, m: points.append(m))
    loop.run(shares())
    assert "1 update(s) of phase 'critic'" in caplog.text and "batch at 16 images" in caplog.text
    assert all(math.isfinite(value) for point in points for value in point.values())
    assert points[1]["train/critic/skipped"] == 1 and "train/critic/skipped" not in points[2]
    # Two updates a step, one of the six left out.
    assert loop._strategy.state()["optim/d/weight/step"].item() == 5
    assert loop._strategy.state()["optim/g/weight/step"].item() == 3


def test_the_first_update_of_momentum_may_be_left_out() -> None:
    module, reference = nn.Linear(2, 2), nn.Linear(2, 2)
    reference.load_state_dict(module.state_dict())
    kept = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, fused=True)
    plain = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    for scale in (torch.inf, 1.0, 1.0):
        for parameter, other in zip(module.parameters(), reference.parameters(), strict=True):
            parameter.grad = torch.full_like(parameter, scale)
            other.grad = torch.ones_like(other)
        with skipping(kept, torch.tensor(scale)) as due:
            if due:
                kept.step()
        if scale == 1.0:
            plain.step()
    for parameter, other in zip(module.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter, other)


def test_too_many_bad_updates_stop_and_name_phase_and_batch() -> None:
    loop = trainer(Explodes(*range(3, 99)), images=640)
    loop._settings = TrainSettings(images=640, max_skipped_steps=4, **SETTINGS)
    with pytest.raises(
        NotFinite, match=r"phase 'critic' .* between images 48 and 64, .*max_skipped"
    ) as error:
        loop.run(shares())
    assert pickle.loads(pickle.dumps(error.value)).bad == Bad("critic", 2, 48)  # noqa: S301 (our own bytes)


def test_a_loss_of_the_wrong_shape_names_its_phase() -> None:
    family = TwoNets()
    family.critic = lambda nets, batch, progress, rng: LossOut(nets["d"](batch["image"]).mean())  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"phase 'critic' must return one loss per row, \[8\]; got \[\]"):
        trainer(family).run(shares())


def test_schedules_depend_on_images_alone() -> None:
    rate = LearningRate(peak=1.0, warmup_images=100, decay="linear")
    for batch in (10, 50):
        assert rate.at(Progress(0, 100, 1100, batch)) == 1.0
        assert rate.at(Progress(0, 600, 1100, batch)) == pytest.approx(0.5)
    assert rate.at(Progress(0, 0, 1100, 10)) == pytest.approx(0.1)

"""What a step does: weighted rows, batches prepared once, phases that start and stop, state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sfumato import families
from sfumato.core.batch import DataSpec, MicroBatch, Piece
from sfumato.core.family import LossOut, NetSpec, Phase, Trainable
from sfumato.core.optimizer import OptimizerConfig
from sfumato.core.progress import Progress
from sfumato.core.schedules import LearningRate
from sfumato.errors import CheckpointError, ConfigError, TrainingError
from sfumato.parallel import Placement
from sfumato.parallel.strategies.single import Single
from sfumato.training.config import TrainSettings
from sfumato.training.loop import Trainer, install

OPTIMIZER = OptimizerConfig(name="adamw", lr=LearningRate(peak=0.05), weight_decay=0.1)
ROWS = 8


def images(number: int) -> Tensor:
    """Global batch `number`, [8, 4]."""
    return torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(number))


def shares(parts: int = 1, start: int = 0) -> Iterator[list[MicroBatch]]:
    """Global batches, each in `parts` micro-batches."""
    number, rows = start, ROWS // parts
    while True:
        whole = images(number)
        yield [
            MicroBatch({"image": whole[at : at + rows]}, (Piece(0, at, rows),)) for at in range(0, ROWS, rows)
        ]
        number += 1


class OneNet:
    """A linear map under a loss that a test gives it; `prepare` counts its calls."""

    samplers = ("net",)

    def __init__(
        self, loss: Callable[..., LossOut], *phases: Phase, state: Mapping[str, Tensor] | None = None
    ) -> None:
        def build() -> nn.Module:
            return nn.Linear(4, 4)

        self.nets: Mapping[str, NetSpec] = {
            name: Trainable(build=build, optimizer=OPTIMIZER)
            for name in sorted({"net", *(phase.trains for phase in phases)})
        }
        self.phases = phases or (Phase(name="only", trains="net", loss=loss),)
        self.prepared: list[tuple[int, Tensor]] = []
        self.dtypes: set[torch.dtype] = set()
        self.state = dict(state or {})

    def prepare(self, nets, batch, progress: Progress, rng):
        self.prepared.append((progress.images, batch["image"]))
        frozen = nn.functional.linear(batch["image"], torch.eye(4))
        self.dtypes.add(frozen.dtype)
        return {**batch, "noise": rng.normal(4)}

    def advance(self, state, sums, progress: Progress):
        if not sums:
            return state
        return {"total": state["total"] + sums["total"], "rows": state["rows"] + sums["rows"].long()}


def trainer(family: OneNet, total: int = 4 * ROWS, **settings: object) -> Trainer:
    strategy = Single(Placement())
    install(family, strategy, seed=1)
    train = TrainSettings(
        images=total, **{"batch": ROWS, "log_every": ROWS, "preview_samples": 0, **settings}
    )
    points: list[dict[str, float]] = []
    made = Trainer(
        family, strategy, train, seed=1, streams=1, report=lambda progress, metrics: points.append(metrics)
    )
    made.points = points
    return made


def weights(made: Trainer) -> dict[str, Tensor]:
    return made._strategy.weights(["net"])["net"]


def row_weights(x: Tensor) -> Tensor:
    return x[:, 0].exp()


def weighted(nets, batch, progress, rng) -> LossOut:
    x = batch["image"]
    return LossOut((nets["net"](x) - x.flip(1)).square().mean(1), weights_B=row_weights(x))


@pytest.mark.parametrize("parts", [1, 4])
def test_a_weighted_loss_equals_plain_torch(parts: int) -> None:
    """sum(w l) / sum(w) over the whole batch, clipped, whatever the cut into micro-batches."""
    made = trainer(OneNet(weighted), clip_grad_norm=0.3)
    net = nn.Linear(4, 4)
    net.load_state_dict(weights(made))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.05, betas=(0.9, 0.99), weight_decay=0.1)
    losses = []
    for number in range(4):
        x = images(number)
        w = row_weights(x)
        loss = (w * (net(x) - x.flip(1)).square().mean(1)).sum() / w.sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.3)
        optimizer.step()
        losses.append(loss.item())
    made.run(shares(parts))
    for key, expected in net.state_dict().items():
        torch.testing.assert_close(weights(made)[key], expected, rtol=1e-5, atol=1e-6)
    assert [point["train/only/loss"] for point in made.points] == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize(("given", "largest"), [("auto", 0.2), (0.3, 0.3), (None, None)])
def test_the_gradient_norm_is_the_familys_choice_unless_the_recipe_gives_one(
    given: float | str | None, largest: float | None
) -> None:
    phase = Phase(name="only", trains="net", loss=weighted, clip_grad_norm=0.2)
    made = trainer(OneNet(weighted, phase), clip_grad_norm=given)
    asked: list[float | None] = []
    step = made._strategy.step
    made._strategy.step = lambda *args, max_norm, **rest: (
        asked.append(max_norm),
        step(*args, max_norm=max_norm, **rest),
    )[1]
    made.run(shares())
    assert asked == [largest] * 4


@pytest.mark.parametrize(("family", "largest"), [("gan", None), ("flow", 10.0), ("diffusion", 1.0)])
def test_what_each_family_chooses(family: str, largest: float | None) -> None:
    data = DataSpec(1, 8, 8, tuple("0123456789"))
    phases = families.config_class(family).tiny().build(data).phases
    assert {phase.clip_grad_norm for phase in phases} == {largest}


def test_weights_that_are_all_zero_give_no_gradient() -> None:
    def loss(nets, batch, progress, rng) -> LossOut:
        return LossOut(nets["net"](batch["image"]).mean(1), weights_B=torch.zeros(rng.rows))

    made = trainer(OneNet(loss))
    made.run(shares())
    assert [point["train/only/grad_norm"] for point in made.points] == [0.0] * 4
    assert [point["train/only/loss"] for point in made.points] == [0.0] * 4


def plain(net: str) -> Callable[..., LossOut]:
    def loss(nets, batch, progress, rng) -> LossOut:
        return LossOut((nets[net](batch["image"]) - batch["noise"]).square().mean(1))

    return loss


def test_a_batch_is_prepared_once_for_all_phases_and_repeats() -> None:
    phases = (
        Phase(name="a", trains="net", loss=plain("net"), repeats=2),
        Phase(name="b", trains="other", loss=plain("other")),
        Phase(name="c", trains="net", loss=plain("net"), every=2),
    )
    family = OneNet(plain("net"), *phases)
    trainer(family, total=4 * ROWS).run(shares(parts=2))
    assert [progress for progress, _ in family.prepared] == [0] * 4 + [16] * 4
    found = torch.cat([batch for _, batch in family.prepared])
    torch.testing.assert_close(found, torch.cat([images(number) for number in range(4)]))


def test_the_first_phase_continues_the_noise_of_prepare_and_later_ones_have_their_own() -> None:
    drawn: dict[str, Tensor] = {}

    def drawing(name: str) -> Callable[..., LossOut]:
        def loss(nets, batch, progress, rng) -> LossOut:
            drawn[name] = rng.normal(4)
            drawn[f"{name} prepared"] = batch["noise"]
            return LossOut(nets["net"](batch["image"]).mean(1))

        return loss

    family = OneNet(
        drawing("a"),
        Phase(name="a", trains="net", loss=drawing("a")),
        Phase(name="b", trains="net", loss=drawing("b")),
    )
    trainer(family, total=ROWS).run(shares())
    from sfumato.core.rng import StreamRng

    def noise(phase: str) -> StreamRng:
        return StreamRng((Piece(0, 0, ROWS),), rows_per_stream=ROWS, seed=1, images=0, phase=phase)

    of_a, of_b = noise("a"), noise("b")
    assert torch.equal(drawn["a prepared"], of_a.normal(4)) and torch.equal(drawn["a"], of_a.normal(4))
    assert torch.equal(drawn["b prepared"], drawn["a prepared"]) and torch.equal(drawn["b"], of_b.normal(4))


@pytest.mark.parametrize(("precision", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_prepare_runs_in_the_precision_of_training(precision: str, expected: torch.dtype) -> None:
    family = OneNet(plain("net"))
    trainer(family, total=ROWS, precision=precision).run(shares())
    assert family.dtypes == {expected}


@pytest.mark.parametrize(("precision", "fused"), [("fp32", True), ("bf16", False)])
def test_attention_is_not_fused_in_bfloat16_on_a_cpu(precision: str, fused: bool) -> None:
    seen: set[bool] = set()

    def loss(nets, batch, progress, rng) -> LossOut:
        seen.add(torch.backends.cuda.flash_sdp_enabled())  # of CPUs too
        return LossOut(nets["net"](batch["image"]).float().mean(1))

    trainer(OneNet(loss), total=ROWS, precision=precision).run(shares())
    assert seen == {fused} and torch.backends.cuda.flash_sdp_enabled(), "outside as before"


@pytest.mark.parametrize("float32", [False, True])
def test_a_phase_of_differences_runs_in_float32(float32: bool) -> None:
    seen: set[torch.dtype] = set()

    def loss(nets, batch, progress, rng) -> LossOut:
        found = nets["net"](batch["image"])
        seen.add(found.dtype)
        return LossOut(found.float().mean(1))

    family = OneNet(loss, Phase(name="only", trains="net", loss=loss, float32=float32))
    trainer(family, total=ROWS, precision="bf16").run(shares())
    assert seen == {torch.float32 if float32 else torch.bfloat16}
    assert family.dtypes == {torch.bfloat16}, "prepare is not part of the phase"


def test_phases_start_and_stop_at_the_first_step_at_or_after() -> None:
    seen: list[tuple[str, int]] = []

    def noting(name: str) -> Callable[..., LossOut]:
        def loss(nets, batch, progress, rng) -> LossOut:
            seen.append((name, progress.images))
            return LossOut(nets["net"](batch["image"]).mean(1))

        return loss

    family = OneNet(
        noting("a"),
        Phase(name="a", trains="net", loss=noting("a"), stop_images=17),
        Phase(name="b", trains="net", loss=noting("b"), start_images=9, stop_images=32),
        Phase(name="c", trains="net", loss=noting("c"), start_images=32),
    )
    trainer(family, total=6 * ROWS).run(shares())
    assert seen == [("a", 0), ("a", 8), ("a", 16), ("b", 16), ("b", 24), ("c", 32), ("c", 40)]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([(0, 16), (24, None)], "no phase runs between 16 and 24 images"),
        ([(8, None)], "no phase runs before 8 images"),
        ([(0, 16)], "no phase runs between 16 and 32 images"),
        ([(0, None), (16, 16)], "never runs: it stops at 16 images and starts at 16"),
    ],
)
def test_a_time_without_phases_is_told_before_training(times: list[tuple], expected: str) -> None:
    phases = [
        Phase(name=f"p{at}", trains="net", loss=plain("net"), start_images=start, stop_images=stop)
        for at, (start, stop) in enumerate(times)
    ]
    with pytest.raises(ConfigError, match=expected) as caught:
        trainer(OneNet(plain("net"), *phases))
    assert "\n" not in str(caught.value)


FIRST = {"total": torch.zeros(4, dtype=torch.float64), "rows": torch.zeros((), dtype=torch.int64)}


def counting(nets, batch, progress, rng) -> LossOut:
    x = batch["image"]
    bad = torch.inf if progress.images == 16 else 1.0
    sums = {"total": x.sum(0), "rows": torch.tensor(rng.rows)}
    return LossOut(bad * nets["net"](x).square().mean(1), sums=sums)


def test_state_adds_up_what_was_kept_and_reaches_the_loss() -> None:
    """The third batch has a gradient that is not finite: its sums are left out."""
    seen = []

    def loss(nets, batch, progress, rng) -> LossOut:
        seen.append(int(progress.state["rows"]))
        return counting(nets, batch, progress, rng)

    made = trainer(OneNet(loss, state=FIRST), max_skipped_steps=3)
    end = made.run(shares(parts=2))
    assert seen == [0, 0, 8, 8, 16, 16, 16, 16]
    expected = sum(images(number).double().sum(0) for number in (0, 1, 3))
    torch.testing.assert_close(end.state["total"], expected, rtol=1e-6, atol=1e-6)
    assert end.state["rows"] == 24 and end.state["rows"].dtype == torch.int64


def test_a_resumed_run_has_the_state_and_an_old_checkpoint_the_first_values() -> None:
    calm = trainer(OneNet(counting, state=FIRST), max_skipped_steps=3)
    expected = calm.run(shares()).state
    half = trainer(OneNet(counting, state=FIRST), total=2 * ROWS, max_skipped_steps=3)
    half.run(shares())
    saved = {k: v.clone() for k, v in {**half._strategy.state(), **half.state()}.items()}
    assert {"state/total", "state/rows"} <= saved.keys()
    resumed = trainer(OneNet(counting, state=FIRST), max_skipped_steps=3)
    resumed._strategy.load(saved)
    resumed.resume(2 * ROWS, 2, saved)
    found = resumed.run(shares(start=2)).state
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    old = {name: value for name, value in saved.items() if not name.startswith("state/")}
    resumed.resume(2 * ROWS, 2, old)
    assert resumed.progress.state["rows"] == 0
    with pytest.raises(CheckpointError, match="does not fit the checkpoint: 'rows' is missing"):
        resumed.resume(16, 2, {name: value for name, value in saved.items() if name != "state/rows"})


def test_state_that_is_not_finite_ends_training() -> None:
    def loss(nets, batch, progress, rng) -> LossOut:
        return replace(counting(nets, batch, progress, rng), sums={"total": torch.full((4,), torch.nan)})

    class Family(OneNet):
        def advance(self, state, sums, progress):
            return {**state, "total": sums["total"]}

    with pytest.raises(TrainingError, match="state 'total' is not finite"):
        trainer(Family(loss, state=FIRST)).run(shares())


def test_what_advance_returns_has_to_be_the_same_state() -> None:
    class Family(OneNet):
        def advance(self, state, sums, progress):
            return {**state, "total": state["total"].float()}

    with pytest.raises(ValueError, match="returns another state: 'total' has shape"):
        trainer(Family(counting, state=FIRST)).run(shares())

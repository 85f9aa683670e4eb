"""The estimates against closed forms, a simulation, and what ranks and an allocator really held."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from sfumato.core.batch import Batch, DataSpec, Piece
from sfumato.core.columns import Column
from sfumato.core.family import LossOut, Nets, Phase, Trainable
from sfumato.core.optimizer import OptimizerConfig
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, StreamRng
from sfumato.errors import ConfigError
from sfumato.families import config_class
from sfumato.parallel import STRATEGIES, ParallelSettings
from sfumato.planning import failures, gpus
from sfumato.planning.counting import count
from sfumato.planning.estimate import Assumptions, Work, estimate
from sfumato.planning.held import Layout
from sfumato.planning.plan import plan
from sfumato.planning.printed import as_data, as_text
from sfumato.planning.traffic import Links, traffic
from sfumato.recipe import Recipe, parse
from sfumato.training.config import TrainSettings

DATA = DataSpec(4, 16, 16, ("a", "b"))
WIDTH, DEPTH, PATCH = 32, 3, 2
TRAIN = TrainSettings(images=1_000_000, batch=64)


def model(**objective: Any) -> Any:
    network = {"kind": "dit", "patch": PATCH, "width": WIDTH, "depth": DEPTH, "heads": 4}
    content = {
        "family": "diffusion",
        "network": network,
        "objective": {"kind": "rectified_flow", **objective},
    }
    return config_class("diffusion").model_validate(content)


@pytest.fixture(scope="module")
def counted() -> Any:
    return count(model().build(DATA), DATA, TRAIN, 8)


def test_operations_are_those_of_the_transformer(counted: Any) -> None:
    """2 operations a multiplication; T tokens of width D: qkv 3DD, project DD, MLP 8DD, attention 2TD."""
    tokens, d = 64, WIDTH
    each = DEPTH * (tokens * (12 * d * d + 2 * tokens * d) + 6 * d * d)  # and the modulation of each block
    ends = tokens * 2 * (PATCH * PATCH * 4) * d + 2 * d * d + 256 * d + d * d
    forward = 2 * 8 * (each + ends)
    (one,) = counted.plain
    # A backward pass takes twice as much, and torch counts 2.5 times for attention, whose forward it repeats;
    # nothing flows back into the image.
    attention = 2 * 8 * DEPTH * 2 * tokens * tokens * d
    assert one.operations == pytest.approx(3 * forward + 0.5 * attention, rel=0.01)
    (again,) = counted.recomputed
    assert again.useful == one.operations < again.operations < one.operations + forward


def test_less_is_alive_with_recomputation(counted: Any) -> None:
    assert counted.recomputed[0].activations < 0.7 * counted.plain[0].activations


def test_activations_are_what_an_allocator_gives() -> None:
    """The same step run for real, its memory followed by torch's profiler."""
    rows, family = 16, model().build(DATA)
    (phase,) = family.phases
    estimated = count(family, DATA, TRAIN, rows).plain[0].activations
    spec = family.nets[phase.trains]
    assert isinstance(spec, Trainable)
    nets: dict[str, nn.Module] = {phase.trains: spec.build()}
    batch = {"image": torch.zeros(rows, *DATA.shape), "label": torch.zeros(rows, dtype=torch.int64)}
    rng = StreamRng((Piece(0, 0, rows),), rows_per_stream=rows, seed=0, images=0, phase=phase.name)
    with torch.profiler.profile(profile_memory=True) as profile:
        phase.loss(nets, batch, Progress.at(0), rng).loss_B.mean().backward()
    now = most = 0
    for event in sorted(
        (e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"),
        key=lambda e: e.start_ns(),
    ):
        now += event.nbytes()
        most = max(most, now)
    gradients = sum(4 * p.numel() for p in nets[phase.trains].parameters())
    # At its highest few gradients exist: what is alive lies between the two.
    assert most - gradients <= estimated * 1.1
    assert estimated <= most * 1.1


def test_an_optimizer_keeps_two_moments_and_a_count_of_each_parameter(counted: Any) -> None:
    trained = next(n for n in counted.networks if n.role == "trained")
    assert sum(p.state for p in trained.parameters) == 2 * trained.size + 4 * len(trained.parameters)
    average = next(n for n in counted.networks if n.role == "average")
    assert average.size == trained.size and not any(p.state or p.gradient for p in average.parameters)


@pytest.mark.parametrize(
    ("name", "parameters", "gradients", "optimizer", "averages"),
    [
        ("ddp", 1, 1, 2, 1),
        ("fsdp", 1 / 4, 1 / 4, 2 / 4, 1 / 4),
        ("zero1", 1, 1, 3 / 4, 1),  # DeepSpeed has a copy of what it updates
        ("zero2", 1, 1 / 4, 3 / 4, 1),
        ("zero3", 1 / 4, 1 / 4, 2 / 4, 1 / 4),
    ],
)
def test_a_rank_holds_its_share(
    counted: Any, name: str, parameters: float, gradients: float, optimizer: float, averages: float
) -> None:
    """What the table of parallel/README.md says, but for rows that do not divide."""
    kind = STRATEGIES[name]
    held = Layout(kind, kind.settings(ParallelSettings()), 4).held(counted.networks)
    net = next(n for n in counted.networks if n.role == "trained")
    whole, buffers = net.size, net.buffers
    found = (held.parameters - buffers, held.gradients, held.optimizer, held.averages - buffers)
    wanted = [whole * share for share in (parameters, gradients, optimizer, averages)]
    assert found == pytest.approx(wanted, rel=0.03)


def test_rings_send_what_the_papers_say(counted: Any) -> None:
    """ZeRO (Rajbhandari et al. 2020, section 7): 2 P for replicas, 3 P where parameters are cut."""
    net = next(n for n in counted.networks if n.role == "trained")
    links = Links(peer=1e9, network=1e8, efficiency=1.0)

    def sent(name: str, ranks: int, passes: int = 1, **own: Any) -> Any:
        kind = STRATEGIES[name]
        layout = Layout(kind, kind.settings(ParallelSettings(options=own)), ranks)
        return traffic(net, layout, links, passes, compute=0.0)

    assert sent("ddp", 4).size == pytest.approx(2 * 3 / 4 * net.size)
    assert sent("ddp", 4, passes=8).size == sent("ddp", 4).size
    assert sent("fsdp", 4).size == pytest.approx(3 * 3 / 4 * net.size)
    assert sent("fsdp", 4, passes=2).size == 2 * sent("fsdp", 4).size
    assert sent("fsdp", 4, reshard_after_forward=False).size == pytest.approx(2 * 3 / 4 * net.size)
    assert sent("fsdp", 4, bf16_parameters=True).size == pytest.approx(2 * 3 / 4 * net.size)
    assert sent("ddp", 8).seconds == pytest.approx(sent("ddp", 8).size / 1e9)
    assert sent("ddp", 16).seconds == pytest.approx(sent("ddp", 16).size / 1e8)  # leaves the node


def test_goodput_is_that_of_a_simulation() -> None:
    interval, stall, restart, mean = 600.0, 20.0, 120.0, 3_000.0
    draw, wall, made = random.Random(0), 0.0, 0.0
    fails = draw.expovariate(1 / mean)
    while made < 4e6:
        # One interval and its checkpoint; failures take the run back to the last one.
        need = interval + stall
        while fails < need:
            wall += fails
            fails = draw.expovariate(1 / mean)
            while fails < restart:
                wall += fails
                fails = draw.expovariate(1 / mean)
            wall, fails = wall + restart, fails - restart
        wall, fails, made = wall + need, fails - need, made + interval
    assert failures.goodput(interval, stall, restart, mean) == pytest.approx(made / wall, abs=0.01)


def test_the_best_interval_is_the_best() -> None:
    stall, mean = 5.0, 7.9 * 3600
    best = failures.best_interval(stall, mean)
    at = {factor: failures.goodput(factor * best, stall, 0.0, mean) for factor in (0.5, 1, 2)}
    assert at[1] > at[0.5] and at[1] > at[2]


def test_failures_are_as_frequent_as_gpus_are_many() -> None:
    assert failures.mean_time(failures.RATES["Kokolis et al. 2024"], 1024) == 7.9 * 3600
    assert failures.mean_time(failures.RATES["Kokolis et al. 2024"], 16_384) == pytest.approx(1777.5)
    assert failures.goodput(1e9, 1.0, 1.0, 1.0) == 0.0


def recipe(**changes: Any) -> Recipe:
    content: dict[str, Any] = {
        "name": "planned",
        "data": {"path": "nowhere", "streams": 16},
        "model": model().model_dump(mode="json"),
        "train": {"images": 1_000_000, "batch": 64},
    }
    for key, value in changes.items():
        content[key] = {**content.get(key, {}), **value}
    return parse(content)


def planned(kind: gpus.Gpu, number: int, **changes: Any) -> Any:
    return plan(recipe(**changes), DATA, gpu=kind, gpus=number, bytes_per_image=1024.0, assumed=Assumptions())


def test_what_fits_whole_is_replicated_and_what_does_not_is_cut() -> None:
    found = planned(gpus.find("H200"), 4)
    assert found.own is not None and found.own.fits and found.proposed.strategy == "ddp"
    assert "parallel.workers=4" in found.changes
    whole = found.own.held.total
    small = replace(gpus.find("H200"), memory=whole / 0.9)  # no room for activations beside it
    cut = planned(small, 4)
    assert not cut.own.fits and cut.own.bottleneck == "memory"
    assert cut.proposed.fits and cut.proposed.strategy != "ddp"
    assert any(change.startswith("parallel.strategy=") for change in cut.changes)
    nothing = planned(replace(small, memory=1.0), 4)
    assert nothing.proposed is None and "nothing fits" in as_text(nothing)
    for one in (found, cut, nothing):
        assert as_data(one)["gpus"] == 4


def test_what_the_recipe_cannot_do_is_said() -> None:
    refused = planned(gpus.find("H100"), 2, parallel={"strategy": "single"})
    assert refused.own is None and "more than one worker" in refused.refused[0]
    assert "refused" in as_text(refused)
    with pytest.raises(ConfigError, match=r"data\.streams=16"):
        planned(gpus.find("H100"), 32)


def test_a_gpu_without_figures_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"rtx9: no figures.*a100, h100, h200"):
        gpus.find("rtx9")
    assert gpus.of_device("NVIDIA H100 80GB HBM3") is gpus.find("h100")
    assert gpus.of_device("NVIDIA A100-SXM4-80GB") is gpus.find("A100")
    assert gpus.of_device("NVIDIA A10") is gpus.find("a10")
    assert gpus.of_device("NVIDIA GeForce RTX 4090") is None


class _Reads:
    """A family whose loss asks for a value."""

    nets: ClassVar = {"net": Trainable(build=lambda: nn.Linear(4, 4), optimizer=OptimizerConfig())}
    samplers = ("net",)

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase(name="p", trains="net", loss=self.loss),)

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        return batch

    def loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        loss_B = nets["net"](batch["image"][:, 0, 0, :4]).sum(1)
        return LossOut(loss_B * 2 if loss_B.sum().item() > 0 else loss_B)


def test_a_loss_that_reads_values_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs the values of tensors"):
        count(_Reads(), DATA, TRAIN, 4)  # type: ignore[arg-type]


def test_between_two_counts_operations_are_exact(counted: Any) -> None:
    family = model().build(DATA)
    few, half = count(family, DATA, TRAIN, 2), count(family, DATA, TRAIN, 4)
    work = Work(few, counted, family.phases, 64, "float32", 64, 64, 0.0)
    between = work.passes(4, recompute=False)[0]
    assert between.operations == half.plain[0].operations
    assert half.plain[0].activations <= between.activations <= 1.02 * half.plain[0].activations
    kind = STRATEGIES["ddp"]
    layout = Layout(kind, kind.settings(ParallelSettings()), 4)
    one = estimate(work, layout, gpus.find("L4"), Assumptions(mfu=0.5), 4, recompute=False)
    assert one.compute == pytest.approx(4 * between.operations / (30.3e12 * 0.5))


def test_models_of_texts_are_refused() -> None:
    content = config_class("diffusion").variants()["pixart"].model_dump(mode="json")
    texts = DataSpec(1, 8, 8, (), {"text": Column("text", "str")})
    with pytest.raises(ConfigError, match="a model of texts cannot be counted"):
        plan(
            parse({**recipe().model_dump(mode="json"), "model": content}),
            texts,
            gpu=gpus.find("H100"),
            gpus=1,
            bytes_per_image=1.0,
            assumed=Assumptions(),
        )

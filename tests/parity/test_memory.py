"""What a rank holds of a frozen network and of an adapter's base, as `make bench-memory` counts it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from repository import ROOT

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.family import EmaOf, Frozen, LossOut, Nets, Phase, Trainable
from sfumato.core.optimizer import OptimizerConfig
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng
from sfumato.parallel import STRATEGIES, ParallelSettings
from sfumato.planning.counting import count
from sfumato.planning.held import Layout
from sfumato.training.config import TrainSettings

SCRIPT = ROOT / "tests/benchmarks/memory/bench_memory.py"
WIDTH = 64
NUMBERS = 48 * (WIDTH * WIDTH + WIDTH)


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("bench_memory", SCRIPT)
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("BENCH_WIDTH", str(WIDTH))
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def rows(bench: Any) -> dict[str, dict[str, int]]:
    return {row["strategy"]: row for row in bench.launch(2, ["ddp", "fsdp"])}


def test_a_sharded_frozen_network_is_held_by_half(rows: dict[str, dict[str, int]]) -> None:
    assert rows["ddp"]["frozen"] == 2 * NUMBERS
    assert rows["fsdp"]["frozen"] == NUMBERS


def test_the_average_of_an_adapter_shares_its_base(rows: dict[str, dict[str, int]]) -> None:
    layer = WIDTH * WIDTH + WIDTH
    assert rows["ddp"]["adapter"] == 4 * (NUMBERS + layer)
    assert rows["fsdp"]["adapter"] == 2 * (NUMBERS + layer)


class _Family:
    """The bench's networks as a family."""

    samplers = ("net",)

    def __init__(self, bench: Any) -> None:
        self.nets = {
            "net": Trainable(build=bench.Mlp, optimizer=OptimizerConfig(name="adamw")),
            "ema": EmaOf(source="net", decay=lambda progress: 0.9),
            "frozen": Frozen(build=bench.Mlp, dtype=torch.bfloat16, shard=True),
        }
        self.phases = (Phase(name="net", trains="net", loss=self.loss),)

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        return batch

    def loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        return LossOut(nets["net"](batch["image"][:, 0, 0]).square().mean(1))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_plan_says_what_ranks_really_hold(
    bench: Any, rows: dict[str, dict[str, int]], strategy: str
) -> None:
    """Within 10 %: a plan's count on tensors without memory, against two ranks after a step."""
    kind = STRATEGIES[strategy]
    layout = Layout(kind, kind.settings(ParallelSettings()), 2)
    family: Any = _Family(bench)
    train = TrainSettings(images=64, batch=2)
    held = layout.held(count(family, DataSpec(1, 1, WIDTH), train, 1).networks)
    found = {
        "parameters": held.parameters,
        "optimizer": held.optimizer,
        "average": held.averages,
        "frozen": held.frozen,
    }
    assert found == {name: pytest.approx(rows[strategy][name], rel=0.1) for name in found}

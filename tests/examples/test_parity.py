"""Every example on several ranks, under every strategy that takes it, and after a kill: as in one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from example_cases import EXAMPLES, Prepared
from launch import launch
from matrix import strategies
from torch import Tensor

from sfumato.parallel import STRATEGIES
from sfumato.parallel.capabilities import Feature

Result = dict[str, Tensor]
Reference = Callable[[str], Result]
CORE = ("adapter", "distilled", "growth")
"""Those with more than plain networks to lay out: a base, a frozen network, groups of parameters."""
FROZEN = ("zero3", "distilled")
"""Of which it exports the whole frozen network beside the sharded student."""
TWICE_ROUNDED = 1e-3
"""DeepSpeed's linear layer of stage 3 adds the bias to a product that is rounded already: a bfloat16 teacher
tells its student something else in the last bit."""


def full_runs() -> list[object]:
    """(strategy, example) of runs from beginning to end on two ranks. Those by default are of a sharding
    strategy and a stage of ZeRO, which shares most of its code with the others; the rest takes minutes."""
    return [
        pytest.param(strategy, name, marks=[] if fast else [pytest.mark.slow])
        for strategy in strategies()
        for name in EXAMPLES
        if name != "adapter" or Feature.ADAPTERS in STRATEGIES[strategy].features
        for fast in [(strategy in ("fsdp", "zero2") and name in CORE) or (strategy, name) == FROZEN]
    ]


def agree(found: Result, expected: Result, name: str, rounding: float | None = None) -> None:
    """All weights, averages and the state; losses where the whole run is at hand."""
    allowed = EXAMPLES[name].rounding if rounding is None else rounding
    if len(found["losses"]) < len(expected["losses"]):
        found, expected = ({k: v for k, v in r.items() if k != "losses"} for r in (found, expected))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        # What is a sum over data alone, and no network has touched, differs by the rounding of a float64.
        exact = 1e-13 if key.startswith("state/") else allowed
        torch.testing.assert_close(
            found[key], value, rtol=exact, atol=exact, msg=lambda m, k=key: f"{k}: {m}"
        )


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_killed_run_ends_where_one_does_that_was_left_alone(
    name: str, prepared: Prepared, reference: Reference, tmp_path: Path
) -> None:
    """Its first part under ddp, the other under fsdp."""
    checkpoints = str(tmp_path / "checkpoints")
    first, second = (prepared.case(name, strategy, checkpoints=checkpoints) for strategy in ("ddp", "fsdp"))
    launch(tmp_path / "killed", world_size=2, kill_at=EXAMPLES[name].stop, expect=9, **first)
    agree(launch(tmp_path / "resumed", world_size=2, **second), reference(name), name)


@pytest.mark.parametrize(("strategy", "name"), full_runs())
def test_two_ranks_compute_what_one_does(
    strategy: str, name: str, prepared: Prepared, reference: Reference, tmp_path: Path
) -> None:
    """Under fsdp, the frozen teacher lies in host memory."""
    offload = {"parallel": {"offload": True}} if (strategy, name) == ("fsdp", "distilled") else {}
    case = prepared.case(name, strategy, **offload)
    rounding = TWICE_ROUNDED if (strategy, name) == FROZEN else None
    agree(launch(tmp_path, world_size=2, **case), reference(name), name, rounding)


@pytest.mark.parametrize(
    "name",
    [name if name == "running_mean" else pytest.param(name, marks=pytest.mark.slow) for name in EXAMPLES],
)
def test_four_ranks_compute_what_one_does(
    name: str, prepared: Prepared, reference: Reference, tmp_path: Path
) -> None:
    """The state depends on it most; the others take minutes together."""
    agree(launch(tmp_path, world_size=4, **prepared.case(name, "ddp")), reference(name), name)


def test_state_is_taken_on_by_every_strategy_in_turn(
    prepared: Prepared, reference: Reference, tmp_path: Path
) -> None:
    """Killed under ddp on two ranks, a step further under each strategy, and ended by one process."""
    case = prepared.case("running_mean", checkpoints=str(tmp_path / "checkpoints"))
    case["train"] = {**case["train"], "checkpoint": {"every": 64}}
    launch(tmp_path / "killed", world_size=2, expect=9, **{**case, "strategy": "ddp", "kill_at": 192})
    chain = [name for name in strategies() if name != "ddp"]
    for turn, name in enumerate(chain, start=1):
        part = {**case, "strategy": name, "stop_at": 192 + 64 * turn}
        launch(tmp_path / name, world_size=2, **part)
    agree(launch(tmp_path / "last", world_size=1, **case), reference("running_mean"), "running_mean")

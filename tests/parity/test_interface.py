"""State, weights of rows, phases that start and stop, growth and groups of parameters: the same on any
number of ranks, under every strategy, and after a kill."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from launch import launch, launch_all
from matrix import strategies
from torch import Tensor

FAMILY = "tiny_families:TinyConfig"
KINDS = ("state", "weights", "phases", "growth")
TRAIN = {
    "images": 640,
    "batch": 64,
    "micro_batch": 16,
    "log_every": 64,
    "preview_samples": 0,
    "clip_grad_norm": 0.5,
    "checkpoint": {"every": 64},
}
Result = dict[str, Tensor]


def case(kind: str, strategy: str, data: Path) -> dict:
    return {"family": FAMILY, "variant": kind, "strategy": strategy, "data": str(data), "train": TRAIN}


def agree(found: Result | str, expected: Result, what: str) -> None:
    assert not isinstance(found, str), f"{what}: {found}"
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # What is a sum over data alone, and no network has touched, differs by the rounding of a float64.
        exact = 1e-13 if name.startswith("state/") else 1e-5
        torch.testing.assert_close(
            found[name], value, rtol=exact, atol=exact, msg=lambda m, n=name: f"{what}, {n}: {m}"
        )


@pytest.fixture(scope="module")
def alone(digits_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """What a single process computes of each kind."""
    folder = tmp_path_factory.mktemp("alone")
    found = launch_all(folder, [case(kind, "single", digits_data) for kind in KINDS], world_size=1)
    assert not [result for result in found if isinstance(result, str)]
    return dict(zip(KINDS, found, strict=True))


@pytest.mark.parametrize("world_size", [2, 4])
def test_any_number_of_ranks_computes_the_same(
    world_size: int, alone: dict[str, Result], digits_data: Path, tmp_path: Path
) -> None:
    chosen = strategies() if world_size == 2 else ["ddp"]
    core = ("ddp", "fsdp", "zero2")  # the other stages of ZeRO share most of their code with the one
    wanted = [(kind, name) for name in chosen for kind in (KINDS if name in core else KINDS[:1])]
    found = launch_all(tmp_path, [case(*each, digits_data) for each in wanted], world_size=world_size)
    for (kind, name), result in zip(wanted, found, strict=True):
        agree(result, alone[kind], f"{kind} under {name} on {world_size} ranks")


def test_a_killed_run_resumes_with_its_state_under_another_strategy(
    alone: dict[str, Result], digits_data: Path, tmp_path: Path
) -> None:
    """Killed under ddp, taken a step further by each strategy in turn, and ended by one process."""
    stored = str(tmp_path / "checkpoints")
    job = {**case("state", "ddp", digits_data), "checkpoints": stored}
    launch(tmp_path / "killed", world_size=2, kill_at=192, expect=9, **job)
    chain = [name for name in strategies() if name != "ddp"]
    cases = [
        {**job, "strategy": name, "stop_at": 192 + 64 * turn} for turn, name in enumerate(chain, start=1)
    ]
    parts = launch_all(tmp_path / "two", cases, world_size=2)
    assert not [part for part in parts if isinstance(part, str)], parts
    last = launch(tmp_path / "last", world_size=1, **{**job, "strategy": "single"})
    resumed = {name: value for name, value in last.items() if name != "losses"}
    agree(resumed, {name: alone["state"][name] for name in resumed}, "resumed")


def test_the_state_is_that_of_the_images_seen(alone: dict[str, Result], digits_data: Path) -> None:
    """The running mean, by hand over the global batches in their order."""
    from tiny_families import DECAY

    from sfumato.core.batch import to_device
    from sfumato.data.config import DataSettings
    from sfumato.data.format.manifest import Manifest
    from sfumato.data.reading import local_reader

    data = DataSettings(path=str(digits_data), streams=8, shuffle_window=100)
    shares = local_reader.read(data, Manifest.load(str(digits_data)), seed=3, batch=64, micro_batch=None)
    mean = torch.zeros(64, dtype=torch.float64)
    for _, share in zip(range(10), shares, strict=False):
        image_BD = to_device(share[0].batch, torch.device("cpu"))["image"].flatten(1).double()
        mean = DECAY * mean + (1 - DECAY) * image_BD.mean(0)
    torch.testing.assert_close(alone["state"]["state/mean"], mean, rtol=1e-12, atol=1e-12)
    assert alone["state"]["state/steps"] == 10

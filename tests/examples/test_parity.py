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

from sfumato.families import config_class
from sfumato.parallel import ParallelSettings
from sfumato.training.capabilities import adapter_problems

Result = dict[str, Tensor]
Reference = Callable[[str], Result]
ZERO = [name for name in strategies() if name.startswith("zero")]


def agree(found: Result, expected: Result, name: str) -> None:
    """All weights, averages and moments of the state; losses where the whole run is at hand."""
    if len(found["losses"]) < len(expected["losses"]):
        found, expected = ({k: v for k, v in r.items() if k != "losses"} for r in (found, expected))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        # What is a sum over data alone, and no network has touched, differs by the rounding of a float64.
        exact = 1e-13 if key.startswith("state/") else EXAMPLES[name].rounding
        torch.testing.assert_close(
            found[key], value, rtol=exact, atol=exact, msg=lambda m, k=key: f"{k}: {m}"
        )


@pytest.mark.parametrize("name", EXAMPLES)
def test_two_ranks_compute_what_one_does(
    name: str, prepared: Prepared, reference: Reference, tmp_path: Path
) -> None:
    agree(launch(tmp_path, world_size=2, **prepared.case(name, "ddp")), reference(name), name)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_killed_run_ends_where_one_does_that_was_left_alone(
    name: str, prepared: Prepared, reference: Reference, tmp_path: Path
) -> None:
    case = prepared.case(name, "fsdp", checkpoints=str(tmp_path / "checkpoints"))
    launch(tmp_path / "killed", world_size=2, kill_at=EXAMPLES[name].stop, expect=9, **case)
    agree(launch(tmp_path / "resumed", world_size=2, **case), reference(name), name)

"""What a run computes does not depend on how it is spread: every member of every family under every
strategy that can train it, against one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from example_sets import pack_digits
from launch import launch
from matrix import TRAIN, Matrix, cases, strategies
from torch import Tensor


@pytest.fixture(scope="module")
def matrix(
    digits_data: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Matrix:
    captioned = pack_digits(tmp_path_factory.mktemp("scratch"), tmp_path_factory.mktemp("data") / "captioned")
    calls = [getattr(item, "callspec", None) for item in request.session.items if item.path == request.path]
    chosen = [call.params for call in calls if call is not None and "member" in call.params]
    wanted = {(each["strategy"], each["member"]) for each in chosen}
    return Matrix(tmp_path_factory.mktemp("matrix"), digits_data, captioned, wanted)


def assert_same(found: dict[str, Tensor], reference: dict[str, Tensor]) -> None:
    assert found.keys() == reference.keys()
    for name, expected in reference.items():
        torch.testing.assert_close(
            found[name], expected, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def name(part: str | tuple[str, str]) -> str:
    return part if isinstance(part, str) else "-".join(part)


@pytest.mark.parametrize(("strategy", "member"), cases(core=True), ids=name)
def test_two_ranks_equal_one_process(strategy: str, member: tuple[str, str], matrix: Matrix) -> None:
    assert_same(matrix.get(strategy, member, 2), matrix.reference(member))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize(("strategy", "member"), cases(core=False), ids=name)
def test_any_number_of_ranks_equals_one_process(
    strategy: str, member: tuple[str, str], ranks: int, matrix: Matrix
) -> None:
    assert_same(matrix.get(strategy, member, ranks), matrix.reference(member))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", strategies())
def test_ranks_that_hold_unequal_shares(strategy: str, digits_data: Path, tmp_path: Path) -> None:
    """Eight streams on three ranks: one of them has fewer micro-batches, and still joins every pass."""
    job = {"family": "diffusion", "data": str(digits_data), "train": TRAIN}
    one = launch(tmp_path / "one", world_size=1, strategy="single", **job)
    three = launch(tmp_path / "three", world_size=3, strategy=strategy, **job)
    assert_same(three, one)


def test_micro_batches_change_nothing_but_rounding(digits_data: Path, tmp_path: Path) -> None:
    """The gradient of one batch of 64 is the sum over its micro-batches, with the same noise."""
    job = {"family": "diffusion", "strategy": "single", "data": str(digits_data)}
    one_step = {**TRAIN, "images": 64}
    whole = launch(tmp_path / "a", world_size=1, train={**one_step, "micro_batch": None}, **job)
    cut = launch(tmp_path / "b", world_size=1, train={**one_step, "micro_batch": 4}, **job)
    assert whole["losses"].item() == pytest.approx(cut["losses"].item(), rel=1e-6)


def test_two_workers_add_the_same_numbers_as_one(digits_data: Path, tmp_path: Path) -> None:
    """With the cut fixed by `micro_batch`, two ranks do bit for bit what one does in two parts."""
    job = {"family": "diffusion", "data": str(digits_data), "train": {**TRAIN, "micro_batch": 32}}
    one = launch(tmp_path / "one", world_size=1, strategy="single", **job)
    two = launch(tmp_path / "two", world_size=2, strategy="ddp", **job)
    for name in one:
        if name != "losses":  # a mean over ranks, summed in another order
            assert torch.equal(one[name], two[name]), name

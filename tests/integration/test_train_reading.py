"""A run whose workers read in their own processes ends with the weights of one without Ray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from train_runs import assert_model_is, reference, write_recipe


@pytest.mark.usefixtures("ray_local")
def test_no_read_tasks(
    digits_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sfumato_here: Callable[..., tuple[int, str, str]],
) -> None:
    monkeypatch.chdir(tmp_path)
    train = {"images": 3_000, "checkpoint": {"every": 1_500}}
    path = write_recipe(tmp_path, digits_data, train=train, data={"read_tasks": 0})
    status, _, said = sfumato_here("train", str(path))
    assert status == 0, said
    assert_model_is(tmp_path, reference(tmp_path, digits_data, **train))

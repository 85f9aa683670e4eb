"""A run whose workers read in their own processes ends with the weights of one without Ray."""

from __future__ import annotations

from pathlib import Path

from train_runs import TIMEOUT_S, assert_model_is, reference, sfumato, write_recipe


def test_no_read_tasks(digits_data: Path, tmp_path: Path) -> None:
    train = {"images": 3_000, "checkpoint": {"every": 1_500}}
    path = write_recipe(tmp_path, digits_data, train=train, data={"read_tasks": 0})
    with sfumato(tmp_path, "train", str(path)) as process:
        _, said = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, said
    assert_model_is(tmp_path, reference(tmp_path, digits_data, **train))

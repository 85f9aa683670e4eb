"""A run's folder: who it belongs to, and what of it is finished."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfumato import recipe as recipes
from sfumato.errors import ConfigError
from sfumato.recipe import Recipe
from sfumato.runtime.run_folder import RunFolder

DIGITS = Path(__file__).parents[2] / "pipelines" / "digits" / "ddpm.yaml"


def recipe(tmp_path: Path, *overrides: str) -> Recipe:
    return recipes.load(DIGITS, [f"storage={tmp_path}", *overrides])


def test_same_recipe_and_data_same_folder(tmp_path: Path) -> None:
    first = RunFolder.of(recipe(tmp_path), "data")
    first.create(recipe(tmp_path), "data")
    assert RunFolder.of(recipe(tmp_path, "parallel.workers=1"), "data").path == first.path
    assert RunFolder.of(recipe(tmp_path, "seed=1"), "data").path != first.path
    assert RunFolder.of(recipe(tmp_path), "other data").path != first.path
    assert RunFolder.of(recipe(tmp_path), "data", fresh=True).path != first.path
    with pytest.raises(ConfigError, match="belongs to another recipe"):
        first.create(recipe(tmp_path, "seed=1"), "data")


def test_a_stage_is_done_for_its_inputs_alone(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.stage_result("train", "a") is None
    folder.finish_stage("train", "a", {"images": 3})
    assert folder.stage_result("train", "a") == {"images": 3}
    assert folder.stage_result("train", "b") is None


def test_a_later_attempt_takes_the_run_over(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    first = folder.claim()
    assert folder.holds(first)
    second = folder.claim()
    assert folder.holds(second) and not folder.holds(first)


def test_state_files_are_whole(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_json("run.json", {"a": 1})
    folder.update_json("run.json", b=2)
    assert folder.read_json("run.json") == {"a": 1, "b": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]

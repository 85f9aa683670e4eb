"""A run's folder: who it belongs to, and what of it is finished."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from repository import DIGITS
from without_rights import as_ordinary_user

from sfumato import recipe as recipes
from sfumato.errors import ConfigError
from sfumato.recipe import Recipe
from sfumato.runtime.runs.run_folder import RunFolder


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


def test_the_newest_of_several_runs_of_a_recipe_is_the_one_that_goes_on(tmp_path: Path) -> None:
    same = recipe(tmp_path)
    first = RunFolder.of(same, "data", fresh=True)
    assert first.path == RunFolder.of(same, "data").path, "nothing there yet"
    first.create(same, "data")
    for own in ("notes", "20261123"):  # somebody's
        (tmp_path / f"{first.id}-{own}").mkdir()
    second = RunFolder.of(same, "data", fresh=True)
    assert second.id == f"{first.id}-2"
    second.create(same, "data")
    assert RunFolder.of(same, "data").path == second.path, "interrupted, the run can be gone on with"
    assert RunFolder.of(same, "data", fresh=True).id == f"{first.id}-3"


def test_a_fresh_run_does_not_find_checkpoints_of_one_whose_folder_is_gone(tmp_path: Path) -> None:
    same = recipe(tmp_path)
    first = RunFolder.of(same, "data")
    fresh = RunFolder.of(same, "data", fresh=True, taken=lambda folder: folder.id == first.id)
    assert fresh.id == f"{first.id}-2"


def test_measuring_a_run_leaves_its_recipe(tmp_path: Path) -> None:
    trained, measured = recipe(tmp_path), recipe(tmp_path, "evaluate.samples=64")
    folder = RunFolder.of(trained, "data")
    folder.create(trained, "data")
    folder.create(measured, "data", keep_recipe=True)
    assert recipes.load(folder.path / "recipe.yaml") == trained
    folder.create(measured, "data")
    assert recipes.load(folder.path / "recipe.yaml") == measured


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


def test_a_run_of_somebody_else_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    same = recipe(tmp_path)
    folder = RunFolder.of(same, "data")
    folder.create(same, "data")
    written = sorted(folder.path.iterdir())
    folder.path.chmod(0o555)
    with as_ordinary_user(), pytest.raises(ConfigError, match=f"^{folder.path} cannot be written: copy it"):
        RunFolder.of(same, "data").create(same, "data", keep_recipe=True)
    assert sorted(folder.path.iterdir()) == written
    if os.geteuid() == 0:
        os.chown(folder.path, 1, -1)
        with as_ordinary_user(), pytest.raises(ConfigError, match=r"cannot be written \(it belongs to "):
            folder.create(same, "data")

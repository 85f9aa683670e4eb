"""What RUN means: also for runs that no MLflow store of this project knows."""

from __future__ import annotations

from pathlib import Path

import pytest
from repository import DIGITS

from sfumato import recipe as recipes
from sfumato.errors import CheckpointError, ConfigError
from sfumato.runtime.commands.sample import device_of
from sfumato.runtime.runs.run_folder import RunFolder
from sfumato.runtime.runs.session import absolute
from sfumato.runtime.runs.targets import folder_of_checkpoint, run_folder_of


def test_a_run_that_a_server_tracks_is_found_by_its_name_its_id_and_its_folders_name(tmp_path: Path) -> None:
    found = []
    for seed, started in ((1, 200.0), (2, 100.0)):
        recipe = recipes.load(DIGITS, [f"seed={seed}", f"storage={tmp_path / 'runs'}"])
        folder = RunFolder.of(recipe, "data")
        folder.create(recipe, "data")
        folder.update_json("run.json", mlflow_run_id=f"{seed:032x}", mlflow_started=started)
        found.append(folder)
    newest, older = found
    broken = tmp_path / "runs" / "broken" / "run.json"
    broken.parent.mkdir()
    broken.write_text("")
    for word, wanted in (
        ("digits-ddpm", newest),
        (f"{2:032x}", older),
        (older.id, older),
        (str(older.path), older),
    ):
        assert run_folder_of(word, root=tmp_path)[0].path == wanted.path
    with pytest.raises(ConfigError, match="no run 'digits'"):
        run_folder_of("digits", root=tmp_path)


def test_places_of_a_recipe_are_those_of_the_folder_it_was_called_in(tmp_path: Path) -> None:
    """Ray gives every worker a folder of its own, which goes with the run."""
    places = ["train.checkpoint.uri=kept", "evaluate.cache=cache", "evaluate.held_out=data/other"]
    recipe = absolute(recipes.load(DIGITS, places), tmp_path)
    assert recipe.train.checkpoint.uri == str(tmp_path / "kept")
    assert recipe.evaluate.cache == str(tmp_path / "cache")
    assert recipe.evaluate.held_out == str(tmp_path / "data" / "other")
    assert recipe.digest() == recipes.load(DIGITS).digest()
    remote = absolute(recipes.load(DIGITS, ["train.checkpoint.uri=s3://bucket/kept"]), tmp_path)
    assert remote.train.checkpoint.uri == "s3://bucket/kept"


def test_a_device_that_is_not_here_is_one_line() -> None:
    assert device_of("cpu").type == "cpu" and device_of("auto").type in ("cpu", "cuda")
    for name in ("cuda:99", "gpu"):
        with pytest.raises(ConfigError, match=f"--device {name}: not on this machine"):
            device_of(name)


def test_checkpoints_that_are_kept_elsewhere_belong_to_the_run_of_that_name(tmp_path: Path) -> None:
    run, kept = (
        tmp_path / "runs" / "mine-1234abcd",
        tmp_path / "kept" / "mine-1234abcd" / "images-000000000100-a",
    )
    kept.mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"no recipe\.yaml in .*kept or .*mine-1234abcd"):
        folder_of_checkpoint(kept, tmp_path)
    run.mkdir(parents=True)
    (run / "recipe.yaml").touch()
    assert folder_of_checkpoint(kept, tmp_path).path == run
    assert folder_of_checkpoint(run / "checkpoints" / kept.name, tmp_path / "other").path == run

"""Runs of version 0.1: found by their recipe, taken over with what they have finished, sampled, exported."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

from sfumato import recipe as recipes
from sfumato.cli import app
from sfumato.core import earlier_defaults
from sfumato.errors import CheckpointError, ConfigError
from sfumato.recipe import Recipe
from sfumato.runtime.commands import stages
from sfumato.runtime.commands.sample import export
from sfumato.runtime.runs import earlier
from sfumato.runtime.runs.display import Display
from sfumato.runtime.runs.run_folder import RunFolder
from sfumato.runtime.runs.session import absolute, open_session
from sfumato.sampling.generator import Generator
from sfumato.training import checkpoint as checkpoints
from sfumato.training.store import LocalStore

OLD = Path(__file__).parents[3] / "data" / "runs-0.1"
SAME_ARITHMETIC = torch.backends.cpu.get_cpu_capability() == "AVX2" and torch.__version__.startswith("2.13.0")
"""Whether results of the machine that made the data are expected to the last bit."""
EarlierRun = Callable[[str, Path], Path]


def recipe_at(root: Path, *overrides: str) -> Recipe:
    return absolute(recipes.load(root / "recipe.yaml", ["tracking.enabled=false", *overrides]), root)


def data_digest(run: Path) -> str:
    return str(json.loads((run / "run.json").read_text())["data_digest"])


def test_a_finished_run_is_found_and_nothing_of_it_is_done_or_built_again(
    earlier_run: EarlierRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = earlier_run("runs", tmp_path)
    model = (run / "model" / "ema.safetensors").read_bytes()

    def built(self: nn.Module, *args: object, **kwargs: object) -> None:
        raise AssertionError(f"a {type(self).__name__} was built")

    said = io.StringIO()
    display = Display(Console(file=said, width=200))
    for _ in range(2):  # the second time by the digests of this version
        with (
            monkeypatch.context() as patched,
            open_session(recipe_at(tmp_path), display, root=tmp_path) as session,
        ):
            patched.setattr(nn.Module, "__init__", built)
            assert session.folder.path == run
            assert stages.train(session)["images"] == 1_280
            assert stages.evaluate(session)["metrics"]["class_accuracy"] == 1.0
            assert stages.register(session) == {}
        known = json.loads((run / "run.json").read_text())
        assert (known["schema"], known["recipe_digest"]) == (recipes.SCHEMA, session.recipe.digest())
    assert said.getvalue().count("done before") + said.getvalue().count("already") >= 4, said.getvalue()
    assert said.getvalue().count("tracking is off") == 2
    assert (run / "model" / "ema.safetensors").read_bytes() == model
    assert list((tmp_path / "runs").iterdir()) == [run], "no other run was begun"


def test_the_register_stage_reads_the_card_alone(
    earlier_run: EarlierRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier_run("runs", tmp_path)
    display = Display(Console(file=io.StringIO()))
    with open_session(recipe_at(tmp_path), display, root=tmp_path) as session:
        recorded = session.recipe.model_copy(
            update={"tracking": session.recipe.tracking.model_copy(update={"enabled": True})}
        )
        monkeypatch.setattr(nn.Module, "__init__", None)
        tracked = stages.Session(
            recorded, session.manifest, session.folder, session.tracker, display, tmp_path
        )
        assert stages.register(tracked) == {"name": "digits-old", "version": 1}


def test_another_recipe_or_other_data_is_another_run(earlier_run: EarlierRun, tmp_path: Path) -> None:
    run = earlier_run("runs", tmp_path)
    digest = data_digest(run)
    found = earlier.find(recipe_at(tmp_path, "parallel.workers=2", "train.log_every=8"), digest)
    assert found is not None and found.folder.path == run
    assert earlier.find(recipe_at(tmp_path, "seed=4"), digest) is None
    assert earlier.find(recipe_at(tmp_path, "model.sampling.steps=4"), digest) is not None
    assert earlier.find(recipe_at(tmp_path, "train.images=1288"), digest) is None
    assert earlier.find(recipe_at(tmp_path, "name=digits"), digest) is None
    assert earlier.find(recipe_at(tmp_path), "0" * 64) is None
    other = recipe_at(tmp_path, "seed=4")
    earlier.take_over(RunFolder(run), other, digest)
    with pytest.raises(ConfigError, match="belongs to another recipe"):
        RunFolder(run).create(other, digest)


def test_of_several_runs_the_newest_and_with_fresh_a_new_one(earlier_run: EarlierRun, tmp_path: Path) -> None:
    run = earlier_run("interrupted", tmp_path)
    for number in (2, 10):
        shutil.copytree(run, run.with_name(f"{run.name}-{number}"))
    found = earlier.find(recipe_at(tmp_path), data_digest(run))
    assert found is not None and found.folder.id == f"{run.name}-10"
    display = Display(Console(file=io.StringIO()))
    with open_session(recipe_at(tmp_path), display, root=tmp_path, fresh=True) as session:
        fresh = session.folder
    assert fresh.path.exists() and not fresh.id.startswith(run.name)
    with open_session(recipe_at(tmp_path), display, root=tmp_path) as session:
        assert session.folder.path == fresh.path, "now the newest"


def test_a_default_that_has_changed_leaves_a_run_its_own_value(
    earlier_run: EarlierRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = earlier_run("interrupted", tmp_path)
    with open_session(recipe_at(tmp_path), Display(Console(file=io.StringIO())), root=tmp_path):
        pass
    for module in (recipes, earlier, earlier_defaults):
        monkeypatch.setattr(module, "SCHEMA", recipes.SCHEMA + 1)
    found = earlier.find(recipe_at(tmp_path), data_digest(run))
    assert found is not None and found.folder.path == run, "its recipe.yaml says the same as before"
    own = run / "recipe.yaml"
    own.write_text(own.read_text().replace("weight_decay: 0.0", "weight_decay: 0.1"))  # the default of then
    assert earlier.find(recipe_at(tmp_path), data_digest(run)) is None
    assert earlier.find(recipe_at(tmp_path, "model.optimizer.weight_decay=0.1"), data_digest(run)) is not None


def test_a_run_keeps_the_defaults_it_began_with(earlier_run: EarlierRun, tmp_path: Path) -> None:
    """Its recipe leaves `train.clip_grad_norm` out, which was 1.0; a run that begins today has today's."""
    run = earlier_run("interrupted", tmp_path)
    said = io.StringIO()
    display = Display(Console(file=said, width=300))
    for _ in range(2):  # the second time by the digest of this version
        with open_session(recipe_at(tmp_path), display, root=tmp_path) as session:
            assert session.folder.path == run and session.recipe.train.clip_grad_norm == 1.0
        known = json.loads((run / "run.json").read_text())
        assert (known["schema"], known["begun_schema"]) == (recipes.SCHEMA, 1)
    assert said.getvalue().count("train.clip_grad_norm: 1.0 there, auto here") == 2
    assert recipes.load(run / "recipe.yaml").train.clip_grad_norm == 1.0
    with open_session(recipe_at(tmp_path), display, root=tmp_path, fresh=True) as session:
        assert session.folder.path != run and session.recipe.train.clip_grad_norm == "auto"


def test_a_run_of_today_with_an_old_default_is_not_taken_for_an_earlier_one(
    earlier_run: EarlierRun, tmp_path: Path
) -> None:
    run, place = earlier_run("interrupted", tmp_path), f"train.checkpoint.uri={tmp_path}/kept"
    digest = data_digest(run)
    shutil.rmtree(run)
    explicit = recipe_at(tmp_path, "train.clip_grad_norm=1.0", place)
    with open_session(explicit, Display(Console(file=io.StringIO())), root=tmp_path) as session:
        folder = session.folder
    assert earlier.find(recipe_at(tmp_path, place), digest) is None
    assert earlier.as_begun(folder, explicit).recipe == explicit


def test_checkpoints_stand_for_a_folder_that_is_gone(earlier_run: EarlierRun, tmp_path: Path) -> None:
    run = earlier_run("interrupted", tmp_path)
    digest, kept = data_digest(run), tmp_path / "kept"
    shutil.copytree(run / "checkpoints", kept / run.name)
    shutil.rmtree(run)
    place = f"train.checkpoint.uri={kept}"
    found = earlier.find(recipe_at(tmp_path, place), digest)
    assert found is not None and found.folder.path == run
    assert (found.schema, found.recipe.train.clip_grad_norm) == (1, 1.0)
    assert earlier.find(recipe_at(tmp_path, place), "0" * 64) is None, "the name is of other data"
    assert earlier.find(recipe_at(tmp_path, place, "seed=4"), digest) is None


def test_a_checkpoint_says_which_recipe_wrote_it(earlier_run: EarlierRun, tmp_path: Path) -> None:
    store = LocalStore(earlier_run("interrupted", tmp_path) / "checkpoints")
    (saved,) = checkpoints.complete(store)
    ours, other = (
        recipe_at(tmp_path, "schema=1", change) for change in ("parallel.strategy=fsdp", "train.batch=16")
    )
    checkpoints.check_recipe(store, saved, ours.digest(), ours)
    with pytest.raises(CheckpointError, match=r"another recipe \(train.batch: 8 there, 16 here\)"):
        checkpoints.check_recipe(store, saved, other.digest(), other)


def test_an_old_model_draws_the_same_images_and_is_exported(earlier_run: EarlierRun, tmp_path: Path) -> None:
    run = earlier_run("runs", tmp_path)
    display = Display(Console(file=io.StringIO()))
    out = tmp_path / "drawn"
    drawing = ["--num", "6", "--seed", "5", "--steps", "5", "--device", "cpu"]
    command = ["sample", str(run), *drawing, "--out", str(out)]
    assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
    for before in sorted((OLD / "samples").glob("0*.png")):
        now, then = (np.asarray(Image.open(path), np.int16) for path in (out / before.name, before))
        assert np.abs(now - then).max() <= (0 if SAME_ARITHMETIC else 1), before.name
        assert not SAME_ARITHMETIC or (out / before.name).read_bytes() == before.read_bytes()
    for kind in ("safetensors", "diffusers"):
        export(str(run), tmp_path / kind, kind=kind, root=tmp_path, display=display)
    assert Generator.load(tmp_path / "safetensors").digest == Generator.load(run / "model").digest
    assert (tmp_path / "diffusers" / "model_index.json").is_file()


def test_an_old_checkpoint_is_exported(earlier_run: EarlierRun, tmp_path: Path) -> None:
    (checkpoint,) = (earlier_run("interrupted", tmp_path) / "checkpoints").iterdir()
    display = Display(Console(file=io.StringIO()))
    export(str(checkpoint), tmp_path / "half", kind="safetensors", root=tmp_path, display=display)
    assert Generator.load(tmp_path / "half").images == 320

"""`sfumato ema` on a run that was really trained: the average that it puts together, against the one kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sfumato import recipe as recipes
from sfumato.core.schedules import EmaSchedule
from sfumato.data.format.manifest import Manifest
from sfumato.data.reading import local_reader
from sfumato.errors import CheckpointError, ConfigError
from sfumato.families import config_class
from sfumato.parallel import Placement
from sfumato.parallel.strategies.single import Single
from sfumato.runtime.commands.ema import rebuild
from sfumato.runtime.runs.run_folder import RunFolder
from sfumato.runtime.training.ema_snapshots import AveragesKeeper, averages_of
from sfumato.sampling.model_files import read_card
from sfumato.sampling.model_folder import read_model_folder
from sfumato.training.loop import Trainer, install

IMAGES, BATCH = 1280, 32


def train(data: Path, storage: Path, every: int | None) -> tuple[RunFolder, dict[str, torch.Tensor]]:
    """Train a tiny model with an average of sigma_rel 0.075; its run's folder, and that average."""
    model = (
        config_class("diffusion").variants()["ddpm"].model_copy(update={"ema": EmaSchedule(sigma_rel=0.075)})
    )
    recipe = recipes.parse(
        {
            "name": "tiny",
            "storage": str(storage),
            "data": {"path": str(data), "streams": 8},
            "model": model.model_dump(mode="json"),
            "train": {"images": IMAGES, "batch": BATCH, "preview_samples": 0, "snapshots": {"every": every}},
            "parallel": {"strategy": "single"},
        }
    )
    manifest = Manifest.load(data)
    folder = RunFolder.of(recipe, manifest.digest)
    folder.create(recipe, manifest.digest)
    family, strategy = recipe.model.build(manifest.spec), Single(Placement())
    averages = averages_of(recipe, family)
    install(family, strategy, seed=0, averages=averages)
    keeper = AveragesKeeper(recipe, strategy, folder, storage / "scratch")
    trainer = Trainer(
        family, strategy, recipe.train, seed=0, streams=8, hooks=keeper.hooks(), averages=averages
    )
    trainer.run(local_reader.read(recipe.data, manifest, seed=0, batch=BATCH))
    keeper.close()
    return folder, strategy.weights(["ema"])["ema"]


def test_puts_together_the_average_that_was_kept(digits_data: Path, tmp_path: Path) -> None:
    folder, kept = train(digits_data, tmp_path, every=160)
    found = rebuild(str(folder.path), tmp_path / "model", sigma_rel=0.075, images=None, root=tmp_path)
    assert (found.images, found.snapshots) == (IMAGES, 8)
    assert found.error < 0.05
    rebuilt = read_model_folder(tmp_path / "model")
    card, _ = read_card(tmp_path / "model")
    assert card["trained_on"] == Manifest.load(digits_data).digest
    other = rebuild(str(folder.path), tmp_path / "other", sigma_rel=0.2, images=None, root=tmp_path)
    wider = read_model_folder(other.folder).weights["ema"]
    assert rebuilt.weights["ema"].keys() == kept.keys()
    for key, expected in kept.items():
        near = (rebuilt.weights["ema"][key] - expected).abs().max()
        far = (wider[key] - expected).abs().max()
        assert near <= max(2e-3, 0.1 * float(far)), key
    with pytest.raises(ConfigError, match=r"--images: got 10, the run's snapshots are from 160 to 1,280"):
        rebuild(str(folder.path), tmp_path / "x", sigma_rel=0.1, images=10, root=tmp_path)
    with pytest.raises(ConfigError, match=r"--sigma-rel: .* between 0 and 0\.289, got 0\.5"):
        rebuild(str(folder.path), tmp_path / "x", sigma_rel=0.5, images=None, root=tmp_path)


def test_a_run_without_snapshots_says_how_to_have_some(digits_data: Path, tmp_path: Path) -> None:
    folder, _ = train(digits_data, tmp_path, every=None)
    with pytest.raises(CheckpointError, match=r"kept no averages .* train\.snapshots\.every"):
        rebuild(str(folder.path), tmp_path / "model", sigma_rel=0.1, images=None, root=tmp_path)

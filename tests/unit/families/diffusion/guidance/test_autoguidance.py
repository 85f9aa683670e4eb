"""Autoguidance by another run: found, checked, carried by model folders, refused where it cannot work."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sfumato.core.batch import DataSpec
from sfumato.core.progress import Progress
from sfumato.core.rng import seeded
from sfumato.errors import ConfigError
from sfumato.evaluation.subjects.model_sources import _Passes
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.runtime.runs.pretrained import resolved_options
from sfumato.sampling.generator import Generator
from sfumato.sampling.model_folder import save_model_folder

DATA = DataSpec(1, 8, 8, ("a", "b", "c"))
TINY = {
    "family": "diffusion",
    "network": {"channels": [8, 16], "head_dim": 8, "norm_groups": 4},
    "objective": {"timesteps": 20, "label_dropout": 0},
    "sampling": {"steps": 3},
}


def stored(folder: Path, seed: int, data: DataSpec = DATA, **changes: Any) -> Path:
    """A model folder with random weights."""
    config = DiffusionConfig.model_validate({**TINY, **changes})
    with seeded(seed, "init"):
        network = config.build(data).nets["network"].build()  # type: ignore[union-attr]
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)))
    save_model_folder(
        folder, config, data, {"ema": network.state_dict()}, name=folder.name, progress=Progress.at(64)
    )
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return stored(tmp_path / "model", 0)


def opened(model: Path, **options: Any) -> Generator:
    """The model with changes of its sampling options, as commands open it."""
    changes = resolved_options(model, options, model.parent, trust=False)
    generator = Generator.load(model)
    return generator.with_options(generator.options(changes))


def test_a_guide_moves_samples_away_from_its_own(model: Path, tmp_path: Path) -> None:
    """The guide being the model itself, D0 + w (D1 - D0) is D1 for any w; another one changes the images."""
    other = stored(tmp_path / "other", 1, network={"channels": [8], "head_dim": 8, "norm_groups": 4})
    plain = Generator.load(model).sample(6, seed=3)
    same = opened(model, guide={"run": str(model)}, guidance=2.0).sample(6, seed=3)
    np.testing.assert_allclose(same.astype(int), plain.astype(int), atol=1)
    guided = opened(model, guide={"run": "other"}, guidance=2.0)  # found beside the project's runs
    images = guided.sample(6, seed=3)
    assert (images != plain).any()
    np.testing.assert_array_equal(images[:2], guided.sample(2, seed=3))
    assert other.is_dir()


def test_each_network_runs_once_a_step(model: Path) -> None:
    guided = opened(model, guide={"run": str(model)}, guidance=2.0)
    with _Passes(guided.nets.values()) as passes:
        guided.sample(1)
    assert passes.rows == 2 * 3 * guided.block


def test_a_model_folder_carries_its_guide(model: Path, tmp_path: Path) -> None:
    other = stored(tmp_path / "other", 1)
    guided = opened(model, guide={"run": str(other)}, guidance=2.0)
    states = {name: net.state_dict() for name, net in guided.nets.items()}
    assert set(states) == {"ema", "guide"}
    save_model_folder(tmp_path / "both", guided.config, DATA, states, name="both", progress=guided.progress)
    shutil.rmtree(other)
    again = Generator.load(tmp_path / "both").sample(4, seed=1)
    np.testing.assert_array_equal(again, guided.sample(4, seed=1))


@pytest.mark.parametrize(
    ("changes", "data", "says"),
    [
        ({"objective": {"timesteps": 10}}, DATA, "objective.timesteps 10, this model 20"),
        ({"objective": {"kind": "edm"}}, DATA, "objective edm, this model ddpm"),
        ({}, DataSpec(1, 16, 16, DATA.classes), "images of 1x16x16, this model 1x8x8"),
        ({}, DataSpec(1, 8, 8, ("a", "b")), "a guide must agree"),
    ],
)
def test_a_guide_of_another_kind_is_refused(
    changes: dict[str, Any], data: DataSpec, says: str, model: Path, tmp_path: Path
) -> None:
    stored(tmp_path / "other", 1, data, **{**changes, "sampling": {"steps": 2}})
    with pytest.raises(ConfigError, match=says):
        opened(model, guide={"run": "other"}, guidance=2.0)


def test_a_guide_needs_guidance_and_a_pipeline_has_no_room_for_it(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="guide: has no effect with guidance=1"):
        opened(model, guide={"run": str(model)})
    guided = opened(model, guide={"run": str(model)}, guidance=2.0)
    with pytest.raises(ConfigError, match="one network"):
        guided.family.export_diffusers(guided.nets, str(tmp_path / "x"), guided.config.sampling)  # type: ignore[attr-defined]


def test_a_guide_that_has_changed_is_not_loaded(model: Path, tmp_path: Path) -> None:
    stored(tmp_path / "other", 1)
    found = resolved_options(model, {"guide": {"run": "other"}, "guidance": 2.0}, tmp_path, trust=False)
    shutil.rmtree(tmp_path / "other")
    stored(tmp_path / "other", 2)
    generator = Generator.load(model)
    with pytest.raises(Exception, match="is not the model that this recipe was started with"):
        generator.with_options(generator.options(found))

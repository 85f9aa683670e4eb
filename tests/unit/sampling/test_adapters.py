"""An adapter's model folder: stored alone, put together with its base, and refused on another one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from adapter import PATTERNS, AdapterConfig
from library_folders import save_unet
from safetensors.torch import load_file

import sfumato
from sfumato.core.batch import DataSpec
from sfumato.core.family import Trainable
from sfumato.core.pretrained import Pretrained
from sfumato.core.progress import Progress
from sfumato.core.stored import StoredNet, matches
from sfumato.errors import CheckpointError, ConfigError
from sfumato.parallel import Placement
from sfumato.parallel.strategies.single import Single
from sfumato.runtime.commands.sample import export
from sfumato.runtime.runs.display import Display
from sfumato.runtime.runs.pretrained import look_up
from sfumato.sampling.generator import Generator
from sfumato.sampling.model_folder import save_model_folder
from sfumato.sampling.pretrained_files import load_stored
from sfumato.training.loop import install

DATA = DataSpec(1, 8, 8)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_unet(tmp_path / "unet")


def config_on(base: Path) -> AdapterConfig:
    return AdapterConfig(base=look_up(Pretrained(folder=str(base)), base.parent, "model.base"))


def moved_by_one_step(config: AdapterConfig) -> Single:
    """A strategy whose adapter is no longer what it was built with."""
    strategy = Single(Placement())
    install(config.build(DATA), strategy, seed=0)
    for _ in range(2):
        nets = strategy.view("network")
        found = nets["network"](torch.ones(2, 1, 8, 8, dtype=torch.bfloat16), torch.zeros(2)).sample
        strategy.backward("network", found.float().square().mean())
        strategy.step("network", lr=0.1, max_norm=None)
        strategy.follow("ema", 0.5)
    return strategy


def save(folder: Path, base: Path) -> tuple[Path, Single]:
    config = config_on(base)
    strategy = moved_by_one_step(config)
    weights = strategy.weights(config.build(DATA).samplers)
    save_model_folder(folder, config, DATA, weights, name="adapter", progress=Progress.at(1))
    return folder, strategy


def test_training_leaves_the_base_alone_and_averages_share_it(base: Path) -> None:
    strategy = moved_by_one_step(config_on(base))
    nets = strategy.view("network")
    before = load_file(base / "diffusion_pytorch_model.safetensors")
    average = dict(nets["ema"].named_parameters())
    for key, parameter in nets["network"].named_parameters():
        adapter = matches(key, PATTERNS)
        assert parameter.requires_grad is adapter
        assert (parameter.data_ptr() == average[key].data_ptr()) is not adapter
        if not adapter:
            assert torch.equal(parameter, before[key].bfloat16())
    stored = {name.rsplit(".", 1)[-1] for name in strategy.state() if name.startswith("nets/")}
    assert stored == {"lora_down", "lora_up", "lora_scale"}
    assert not nets["network"].training, "the base stays in eval mode"
    layers = [m for m in nets["network"].modules() if hasattr(m, "lora_up")]
    assert layers and all(m.training and m.drop.training for m in layers)
    strategy.view("network")
    with strategy.gathered(["ema"]):
        assert not any(m.training for m in layers)


def test_a_model_folder_has_the_adapter_alone_and_finds_its_base(base: Path, tmp_path: Path) -> None:
    folder, strategy = save(tmp_path / "model", base)
    assert all(matches(key, PATTERNS) for key in load_file(folder / "ema.safetensors"))
    size = (folder / "ema.safetensors").stat().st_size
    assert size < (base / "diffusion_pytorch_model.safetensors").stat().st_size / 2
    record = json.loads((folder / "config.json").read_text())["bases"]["ema"]
    assert (record["kind"], record["folder"]) == ("folder", str(base))
    generator = Generator.load(folder, trust=True)
    ours, theirs = generator.nets["ema"].state_dict(), strategy.view("network")["ema"].state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) and ours[key].dtype == theirs[key].dtype for key in ours)
    assert generator.sample(2).shape == (2, 8, 8, 1)


def test_a_base_that_moved_is_named_and_another_one_is_refused(base: Path, tmp_path: Path) -> None:
    folder, _ = save(tmp_path / "model", base)
    images = Generator.load(folder, trust=True).sample(2)
    base.rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match="is not there") as told:
        sfumato.load(folder, trust=True)
    assert "\n" not in str(told.value)
    assert (sfumato.load(folder, trust=True, base=tmp_path / "moved").sample(2) == images).all()
    save_unet(base, seed=1)
    with pytest.raises(CheckpointError, match=r"is not the content that this .* was started with"):
        Generator.load(folder, trust=True)


def test_an_export_with_the_base_needs_no_other_folder(base: Path, tmp_path: Path) -> None:
    folder, _ = save(tmp_path / "model", base)
    images = Generator.load(folder, trust=True).sample(2)
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    folder.rename(run / "model")
    with Display() as display:
        how = {"kind": "safetensors", "root": tmp_path, "display": display}
        export(str(run), tmp_path / "alone", **how)
        export(str(run), tmp_path / "both", with_base=True, **how)
    base.rename(tmp_path / "gone")
    assert (Generator.load(tmp_path / "both", trust=True).sample(2) == images).all()
    with pytest.raises(CheckpointError, match="is not there"):
        Generator.load(tmp_path / "alone", trust=True)
    with pytest.raises(ConfigError, match="needs no base; leave it out"):
        Generator.load(tmp_path / "both", trust=True, base=tmp_path / "gone")


def test_an_adapter_serves_as_weights_of_another_network(base: Path, tmp_path: Path) -> None:
    folder, strategy = save(tmp_path / "model", base)
    found = look_up(Pretrained(run=str(folder)), tmp_path, "model.base")
    assert (found.network, found.model) == ("ema", None), "its family is not built in"
    weights = found.weights()
    assert isinstance(weights, StoredNet)
    spec = config_on(base).build(DATA).nets["network"]
    assert isinstance(spec, Trainable)
    network = spec.build()
    load_stored(network, weights)
    theirs = strategy.view("network")["ema"].state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in network.state_dict().items())


def test_a_base_that_changed_is_refused_when_a_run_goes_on(base: Path) -> None:
    config = config_on(base)
    save_unet(base, seed=1)
    with pytest.raises(CheckpointError, match="is not the content"):
        install(config.build(DATA), Single(Placement()), seed=0)

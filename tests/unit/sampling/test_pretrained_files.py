"""Weights from library folders, model folders and files: loaded alike, checked, and refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from library_folders import save_unet, tiny_autoencoder, tiny_text_model, tiny_unet
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import nn

from sfumato.core.pretrained import LibraryModel, Pretrained, StoredFile
from sfumato.errors import CheckpointError, ConfigError, SfumatoError
from sfumato.layers import library_networks
from sfumato.runtime.runs.pretrained import look_up
from sfumato.sampling.pretrained_files import file_digest, load_stored


def network_of(pretrained: Pretrained) -> nn.Module:
    opened = library_networks.opened(pretrained)
    network = opened.build().eval()
    assert opened.weights is not None
    load_stored(network, opened.weights)
    return network


def recorded(folder: Path, **fields: str) -> Pretrained:
    """A reference to a folder as a run records it."""
    return look_up(Pretrained(folder=folder.name, **fields), folder.parent, "model.base")


@torch.no_grad()
@pytest.mark.parametrize("shards", [None, "5KB"])
def test_a_unet_from_a_folder_of_diffusers_gives_equal_outputs(shards: str | None, tmp_path: Path) -> None:
    options = {} if shards is None else {"max_shard_size": shards}
    save_unet(tmp_path / "pipeline" / "unet", **options)
    found = recorded(tmp_path / "pipeline", subfolder="unet")
    again = Pretrained.model_validate(json.loads(found.model_dump_json()))
    assert again == found and Path(found.folder).is_absolute()
    x, time = torch.randn(2, 1, 8, 8), torch.tensor([3, 5])
    assert torch.equal(network_of(again)(x, time).sample, tiny_unet().eval()(x, time).sample)


@torch.no_grad()
def test_an_autoencoder_and_a_text_model_give_equal_outputs(tmp_path: Path) -> None:
    vae, text = tiny_autoencoder().eval(), tiny_text_model()
    vae.save_pretrained(tmp_path / "vae")
    text.save_pretrained(tmp_path / "text")
    image, tokens = torch.randn(2, 1, 8, 8), torch.tensor([[0, 5, 7, 1]])
    loaded = network_of(recorded(tmp_path / "vae"))
    assert torch.equal(loaded.encode(image).latent_dist.mean, vae.encode(image).latent_dist.mean)
    loaded = network_of(recorded(tmp_path / "text"))
    assert torch.equal(loaded(tokens).last_hidden_state, text(tokens).last_hidden_state)


@torch.no_grad()
def test_names_of_older_versions_are_read_by_the_library(tmp_path: Path) -> None:
    """transformers 4 wrote `text_model.` before each name; version 5 renames them while loading."""
    text = tiny_text_model()
    text.save_pretrained(tmp_path / "text")
    file = tmp_path / "text" / "model.safetensors"
    save_file({f"text_model.{k}": v for k, v in load_file(file).items()}, file, {"format": "pt"})
    tokens = torch.tensor([[0, 5, 7, 1]])
    loaded = network_of(recorded(tmp_path / "text"))
    assert torch.equal(loaded(tokens).last_hidden_state, text(tokens).last_hidden_state)


def test_a_file_with_a_prefix_goes_into_a_part_of_a_network(tmp_path: Path) -> None:
    whole = nn.ModuleDict({"inner": nn.Linear(2, 3), "head": nn.Linear(3, 1)})
    state = {f"model.{key}": value for key, value in whole["inner"].state_dict().items()}
    save_file({**state, "model.left": torch.ones(1), "other": torch.ones(1)}, tmp_path / "a.safetensors")
    found = look_up(Pretrained(file="a.safetensors", prefix="model."), tmp_path, "model.base")
    weights = found.weights(into="inner", fresh=("head.*",), unused=("left",))
    assert isinstance(weights, StoredFile) and weights.digest == file_digest(tmp_path / "a.safetensors")
    target = nn.ModuleDict({"inner": nn.Linear(2, 3), "head": nn.Linear(3, 1)})
    head = target["head"].weight.detach().clone()
    load_stored(target, weights)
    assert torch.equal(target["inner"].weight, whole["inner"].weight)
    assert torch.equal(target["head"].weight, head)
    with pytest.raises(CheckpointError, match=r"another network: head\.weight is missing"):
        load_stored(target, found.weights(into="inner", unused=("left",)))
    with pytest.raises(CheckpointError, match=r"the network has no inner\.left"):
        load_stored(target, found.weights(into="inner", fresh=("head.*",)))
    with pytest.raises(CheckpointError, match=r"inner\.bias has shape \[3\], .*\[2\]"):
        load_stored(nn.ModuleDict({"inner": nn.Linear(2, 2)}), found.weights(into="inner", unused=("left",)))


def test_what_has_changed_is_refused_before_and_in_training(tmp_path: Path) -> None:
    save_unet(tmp_path / "unet")
    found = recorded(tmp_path / "unet")
    opened = library_networks.opened(found)
    save_unet(tmp_path / "unet", seed=1)
    with pytest.raises(ConfigError, match=r"model\.base\.folder: .* is another content than before"):
        look_up(found, tmp_path, "model.base")
    with pytest.raises(CheckpointError, match="is not the content that this recipe was started with"):
        load_stored(opened.build(), opened.weights)
    (tmp_path / "unet").rename(tmp_path / "gone")
    assert look_up(found, tmp_path, "model.base") == found, "a finished run does without it"
    with pytest.raises(CheckpointError, match="is not there"):
        load_stored(opened.build(), opened.weights)


def damage(folder: Path, **changes: object) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **changes}))


def no_weights(folder: Path) -> None:
    (folder / "diffusion_pytorch_model.safetensors").rename(folder / "diffusion_pytorch_model.bin")


def outside(folder: Path) -> None:
    no_weights(folder)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../else.safetensors"}}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (no_weights, r"has only diffusion_pytorch_model\.bin; a pickle is never read.*convert it"),
        (outside, "which is not a safetensors file of this folder"),
        (lambda folder: damage(folder, _class_name="os.system"), "must match the pattern"),
        (lambda folder: damage(folder, _class_name="DDIMScheduler"), "has no network 'DDIMScheduler'"),
        (lambda folder: damage(folder, _class_name="Mine"), "has no network 'Mine'; code from elsewhere"),
        (lambda folder: damage(folder, _class_name=None), "names no class"),
        (lambda folder: damage(folder, quantization_config={}), "holds quantized weights"),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_line(change, said: str, tmp_path: Path) -> None:
    save_unet(tmp_path / "unet")
    change(tmp_path / "unet")
    with pytest.raises(ConfigError, match=said) as told:
        recorded(tmp_path / "unet")
    assert "\n" not in str(told.value) and str(told.value).startswith("model.base.folder: 'unet'")


def test_a_pickle_by_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"model\.base\.file: .*a pickle is never read"):
        look_up(Pretrained(file="model.ckpt"), tmp_path, "model.base")
    with pytest.raises(ConfigError, match="is not there"):
        look_up(Pretrained(file="none.safetensors"), tmp_path, "model.base")


def test_code_that_a_configuration_points_to_is_left_out() -> None:
    model = LibraryModel(
        library="transformers",
        name="CLIPTextModel",
        config={
            **tiny_text_model().config.to_dict(),
            "attn_implementation": "someone/kernel",
            "_attn_implementation_internal": "someone/kernel",
            "auto_map": {"AutoModel": "someone/else--code.Mine"},
        },
    )
    network = library_networks.build(model)
    assert network.config._attn_implementation == "sdpa"
    assert not hasattr(network.config, "auto_map")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "needs run"),
        ({"run": "a", "file": "b"}, "got run and file"),
        ({"run": "a", "subfolder": "unet"}, "subfolder has an effect only with folder"),
        ({"folder": "a", "prefix": "x."}, "prefix has an effect only with file"),
    ],
)
def test_one_place_is_named(fields: dict[str, str], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Pretrained(**fields)


def test_what_has_not_been_looked_up_cannot_be_loaded() -> None:
    with pytest.raises(SfumatoError, match="'a' has not been looked up"):
        Pretrained(folder="a").weights()
    with pytest.raises(SfumatoError, match="'a' has not been looked up"):
        library_networks.opened(Pretrained(folder="a"))

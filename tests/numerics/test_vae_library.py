"""Autoencoders of diffusers as first stages: the library's own results, its weights, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from library_folders import save_unet
from torch import Tensor

from sfumato.core.batch import DataSpec
from sfumato.core.first_stage import FirstStage, FirstStageConfig
from sfumato.core.rng import seeded
from sfumato.errors import ConfigError
from sfumato.families import config_class
from sfumato.families.autoregressive.config import AutoregressiveConfig
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.families.vae.config import VaeConfig
from sfumato.runtime.runs.pretrained import look_up
from sfumato.sampling.pretrained_files import load_stored

DATA = DataSpec(channels=3, height=16, width=16)


def autoencoder(name: str) -> Any:
    import diffusers

    settings: dict[str, Any] = {
        "AutoencoderKL": {
            "block_out_channels": (4, 8),
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "norm_num_groups": 4,
            "scaling_factor": 0.5,
            "shift_factor": 0.25,
        },
        "AutoencoderTiny": {
            "encoder_block_out_channels": (4, 4),
            "decoder_block_out_channels": (4, 4),
            "num_encoder_blocks": (1, 1),
            "num_decoder_blocks": (1, 1),
        },
        "AutoencoderDC": {
            "latent_channels": 4,
            "attention_head_dim": 4,
            "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
            "decoder_block_types": ("ResBlock", "EfficientViTBlock"),
            "encoder_block_out_channels": (8, 8),
            "decoder_block_out_channels": (8, 8),
            "encoder_layers_per_block": (1, 1),
            "decoder_layers_per_block": (1, 1),
            "encoder_qkv_multiscales": ((), ()),
            "decoder_qkv_multiscales": ((), ()),
            "scaling_factor": 0.3,
        },
    }
    with seeded(0, name):
        return getattr(diffusers, name)(**settings[name]).eval()


def folder(tmp_path: Path, name: str) -> Path:
    autoencoder(name).save_pretrained(tmp_path / "vae")
    return tmp_path


def stage(tmp_path: Path, name: str) -> FirstStageConfig:
    return look_up(FirstStageConfig(folder=str(folder(tmp_path, name)), subfolder="vae"), tmp_path, "model")


@torch.no_grad()
@pytest.mark.parametrize("name", ["AutoencoderKL", "AutoencoderTiny", "AutoencoderDC"])
def test_latents_and_images_are_the_librarys(tmp_path: Path, name: str) -> None:
    opened = stage(tmp_path, name).open(config_class, DATA)
    assert opened.stored is not None and opened.data == DATA
    network = opened.spec.build()
    load_stored(network, opened.stored)
    network.eval()
    assert isinstance(network, FirstStage)
    theirs, x = autoencoder(name), torch.rand(2, 3, 16, 16) * 2 - 1
    found = theirs.encode(x)
    scale, shift = theirs.config.scaling_factor, getattr(theirs.config, "shift_factor", None) or 0.0
    mean: Tensor = found.latent_dist.mean if name == "AutoencoderKL" else found[0]
    latent = network.encode(x)
    torch.testing.assert_close(latent.mean, (mean - shift) * scale)
    expected_std = found.latent_dist.std * scale if name == "AutoencoderKL" else torch.zeros_like(mean)
    torch.testing.assert_close(latent.std, expected_std)
    assert latent.mean.shape[1:] == opened.spec.latent
    torch.testing.assert_close(network.decode(latent.mean), theirs.decode(mean).sample.clamp(-1, 1))


def test_any_size_and_the_record(tmp_path: Path) -> None:
    found = stage(tmp_path, "AutoencoderKL")
    assert found.recorded and found.digest is not None
    assert Path(found.folder).is_absolute()
    assert found.open(config_class, DataSpec(3, 32, 16)).spec.latent == (4, 16, 8)
    again = FirstStageConfig.model_validate(found.model_dump(mode="json"))
    assert again == found and look_up(again, tmp_path, "model") == found
    assert found.problems(DATA, config_class) == []
    (line,) = found.problems(DATA, config_class, codes=True)
    assert "has no codes" in line
    (line,) = found.problems(DataSpec(1, 16, 16), config_class)
    assert "takes no images of 1x16x16" in line


def test_a_latent_diffusion_stands_on_it(tmp_path: Path) -> None:
    latent = next(each for each in DiffusionConfig.variants().values() if each.first_stage is not None)
    config = latent.model_copy(update={"first_stage": stage(tmp_path, "AutoencoderTiny")})
    assert config.problems(DATA) == []
    nets = config.build(DATA).nets
    assert nets["first_stage"].weights is not None  # type: ignore[union-attr]
    codes = AutoregressiveConfig.variants()["transformer"]
    codes = codes.model_copy(update={"first_stage": config.first_stage})
    assert any("has no codes" in line for line in codes.problems(DATA))


def test_it_trains_from_the_folders_weights(tmp_path: Path) -> None:
    found = stage(tmp_path, "AutoencoderKL")
    assert found.model is not None
    config = VaeConfig.model_validate(found.model.config)
    assert config.problems(DATA) == []
    family = config.build(DATA)
    network = family.nets["network"].build()  # type: ignore[union-attr]
    load_stored(network, family.nets["network"].weights)  # type: ignore[union-attr, arg-type]
    theirs = autoencoder("AutoencoderKL").state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in network.network.state_dict().items())
    (line,) = config.problems(DataSpec(3, 15, 16))
    assert "does not divide images of 16x15" in line


def test_other_networks_are_refused(tmp_path: Path) -> None:
    save_unet(tmp_path / "unet")
    with pytest.raises(ConfigError, match="holds a UNet2DModel; first stages are AutoencoderKL"):
        look_up(FirstStageConfig(folder=str(tmp_path / "unet")), tmp_path, "model.first_stage")
    with pytest.raises(ValueError, match="one of run and folder"):
        FirstStageConfig(run="a", folder="b")
    with pytest.raises(ValueError, match="subfolder has an effect only with folder"):
        FirstStageConfig(run="a", subfolder="b")

"""Exported models of texts draw in diffusers' stock pipelines, without Sfumato, what Sfumato draws."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from text_folders import save_text_model
from torch import Tensor, nn

from sfumato.core.batch import DataSpec, Texts
from sfumato.core.columns import Column
from sfumato.core.family import ExportsDiffusers, SampleRequest
from sfumato.core.rng import SampleRng, seeded
from sfumato.errors import ConfigError
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.families.diffusion.latent import scaled
from sfumato.families.diffusion.variants import SMALL_IMAGES, TINY_AUTOENCODER
from sfumato.runtime.runs.pretrained import look_up
from sfumato.sampling.pretrained_files import load_stored
from sfumato.text.encoders.folder import FolderConfig
from sfumato.text.encoders.joint import JointConfig

DATA = DataSpec(1, 8, 8, (), {"text": Column("text", "str")})
LATENT = (2, 4, 4)
PROMPTS, NEGATIVE = ["the one", "a"], "the"
STEPS, GUIDANCE = 4, 3.0
TOLERANCE = 1e-4
"""Of values in [0, 1]; a level of 8-bit images is 0.004."""
SCALE = 1.7

# Runs where Sfumato cannot be imported: loads each folder, draws from the given noise.
ALONE = """
import json, sys
sys.modules["sfumato"] = None
import numpy as np, torch
from diffusers import DiffusionPipeline
for case in json.load(sys.stdin):
    pipeline = DiffusionPipeline.from_pretrained(case["folder"])
    pipeline.set_progress_bar_config(disable=True)
    assert type(pipeline).__name__ == case["kind"], type(pipeline)
    latents = torch.from_numpy(np.load(case["noise"]))
    call = {name: tuple(value) if name.endswith("_size") else value for name, value in case["call"].items()}
    images = pipeline(latents=latents, output_type="pt", **call).images
    np.save(case["images"], images.numpy())
"""


def encoder(folder: Path, kind: str, **fields: Any) -> FolderConfig:
    weights = {"folder": str(save_text_model(folder / kind, kind))}
    config = FolderConfig(weights=weights, tokens=8, **fields)
    return config.model_copy(update={"weights": look_up(config.weights, folder, "w")}).learnt(lambda: ())


def of_sd3(folder: Path) -> list[FolderConfig]:
    (folder / "two").mkdir()
    return [
        encoder(folder, "clip_projected", layer=-2),
        encoder(folder / "two", "clip_projected", layer=-2, beside=True),
        encoder(folder, "t5_wide", uses="states", mask=False),
    ]


def of_xl(folder: Path) -> list[FolderConfig]:
    (folder / "xl").mkdir()
    return [
        encoder(folder / "xl", "clip", layer=-2, uses="states"),
        encoder(folder / "xl", "clip_projected", layer=-2, beside=True),
    ]


def model(network: dict[str, Any], objective: dict[str, Any], encoders: list[Any]) -> DiffusionConfig:
    flow = objective["kind"] == "rectified_flow"
    return DiffusionConfig.model_validate(
        {
            "family": "diffusion",
            "text": {"encoders": encoders},
            "network": network,
            "objective": objective,
            "first_stage": {"model": {"family": "vae", "config": TINY_AUTOENCODER, "data": SMALL_IMAGES}},
            "latent_scale": SCALE,
            "sampling": {"sampler": "euler" if flow else "dpmsolver++", "steps": STEPS, "guidance": GUIDANCE},
        }
    )


def nets_of(config: DiffusionConfig) -> dict[str, nn.Module]:
    family, found = config.build(DATA), {}
    for name, spec in family.nets.items():
        if name in ("ema", "network"):
            continue
        with seeded(0, name):
            found[name] = spec.build()
        if getattr(spec, "weights", None) is not None:
            load_stored(found[name], spec.weights)
    with seeded(1, "network"):
        found["ema"] = family.nets["network"].build()
        for weight in found["ema"].parameters():  # gates start at zero
            if weight.dim() > 1:
                nn.init.normal_(weight, std=0.15)
    return {name: net.eval() for name, net in found.items()}


@torch.no_grad()
def drawn(config: DiffusionConfig, nets: Mapping[str, nn.Module]) -> Tensor:
    conditions = {"text": Texts(PROMPTS), "negative_text": Texts([NEGATIVE] * 2)}
    request = SampleRequest(num=2, options=config.sampling, conditions=conditions)
    progress: Any = None
    return config.build(DATA).sample(nets, request, progress, SampleRng(7, range(2))) / 2 + 0.5


def export(config: DiffusionConfig, nets: Mapping[str, nn.Module], folder: Path) -> None:
    family = config.build(DATA)
    assert isinstance(family, ExportsDiffusers)
    family.export_diffusers(nets, str(folder), config.sampling)


DDPM = {"kind": "ddpm", "timesteps": 20}
FLOW = {"kind": "rectified_flow"}
UNET = {"kind": "unet_text", "channels": (8, 16), "head_dim": 8, "norm_groups": 4, "layers_per_block": 1}
XL = {**UNET, "pooled_with_size": (8, 8)}
PIXART = {"kind": "pixart", "heads": 2, "head_dim": 8, "depth": 1}
MMDIT = {"kind": "mmdit", "heads": 2, "head_dim": 8, "depth": 2}
ASKED = {"prompt": PROMPTS, "num_inference_steps": STEPS, "guidance_scale": GUIDANCE}


def cases(folder: Path) -> dict[str, tuple[DiffusionConfig, str, dict[str, Any]]]:
    negative = {"negative_prompt": [NEGATIVE] * 2}
    sigmas = {"sigmas": [1 - i / STEPS for i in range(STEPS)], "max_sequence_length": 8}
    pixart = {"negative_prompt": NEGATIVE, "use_resolution_binning": False, "max_sequence_length": 8}
    pixart |= {"clean_caption": False, "height": 8, "width": 8}
    sizes = {"original_size": (8, 8), "target_size": (8, 8), "height": 8, "width": 8}
    return {
        "sd": (model(UNET, DDPM, [JointConfig.tiny()]), "StableDiffusionPipeline", negative),
        "sd-clip": (model(UNET, DDPM, [encoder(folder, "clip")]), "StableDiffusionPipeline", negative),
        "xl": (model(XL, DDPM, of_xl(folder)), "StableDiffusionXLPipeline", {**negative, **sizes}),
        "pixart": (model(PIXART, DDPM, [encoder(folder, "t5_whole")]), "PixArtAlphaPipeline", pixart),
        "sd3": (model(MMDIT, FLOW, of_sd3(folder)), "StableDiffusion3Pipeline", {**negative, **sigmas}),
    }


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tensor, Tensor]]:
    """Sfumato's images and the pipelines', all from one process without Sfumato."""
    folder = tmp_path_factory.mktemp("exported")
    np.save(folder / "noise.npy", SampleRng(7, range(2)).normal(*LATENT).numpy())
    asked, own = [], {}
    for name, (config, kind, call) in cases(folder).items():
        nets = nets_of(config)
        own[name] = drawn(config, nets)
        export(config, nets, folder / f"{name}-exported")
        places = {"folder": str(folder / f"{name}-exported"), "images": str(folder / f"{name}.npy")}
        asked.append({**places, "noise": str(folder / "noise.npy"), "kind": kind, "call": {**ASKED, **call}})
    told = subprocess.run(
        [sys.executable, "-c", ALONE], input=json.dumps(asked), capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr[-3000:]
    return {name: (images, torch.from_numpy(np.load(folder / f"{name}.npy"))) for name, images in own.items()}


@pytest.mark.parametrize("name", ["sd", "sd-clip", "xl", "pixart", "sd3"])
def test_the_same_noise_gives_the_same_images(name: str, pairs: dict[str, tuple[Tensor, Tensor]]) -> None:
    own, theirs = pairs[name]
    assert own.shape == theirs.shape
    assert float(own.std()) > 0.02, "the images show something"
    torch.testing.assert_close(theirs, own, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (model(UNET, FLOW, [JointConfig.tiny()]), "needs model.objective.kind=ddpm"),
        (model({**UNET, "mask": True}, DDPM, [JointConfig.tiny()]), "attends to padding"),
        (model(XL, DDPM, [JointConfig.tiny()]), "has two text encoders of CLIP"),
        (model(MMDIT, FLOW, [JointConfig.tiny()]), "has three text encoders"),
        (model({"kind": "flux", "heads": 1}, FLOW, [JointConfig.tiny()]), "no pipeline for network 'flux'"),
    ],
)
def test_what_no_pipeline_draws_is_refused(config: DiffusionConfig, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        export(config, nets_of(config), tmp_path)


def test_pixels_are_refused(tmp_path: Path) -> None:
    config = model(UNET, DDPM, [JointConfig.tiny()]).model_copy(
        update={"first_stage": None, "latent_scale": None}
    )
    with pytest.raises(ConfigError, match="work on latents, this model on pixels"):
        export(config, nets_of(config), tmp_path)


def test_the_scale_of_latents_is_exported(tmp_path: Path) -> None:
    config = model(UNET, DDPM, [JointConfig.tiny()])
    nets = nets_of(config)
    assert float(scaled(nets["ema"]).latent_scale) == pytest.approx(SCALE)
    export(config, nets, tmp_path)
    found = json.loads((tmp_path / "vae" / "config.json").read_text())["scaling_factor"]
    assert found == pytest.approx(SCALE)

"""Tiny models with random weights, and edits by them."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from sfumato.core.batch import DataSpec
from sfumato.core.conditions import Listed
from sfumato.core.family import EmaOf
from sfumato.core.rng import seeded
from sfumato.editing.edit import Edit, options_for
from sfumato.editing.operations import Operation
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.sampling.generator import Generator
from sfumato.sampling.pixels import from_uint8

DATA = DataSpec(1, 8, 8)
MEMBERS = {
    "ddpm": {"objective": {"kind": "ddpm", "timesteps": 100}},
    "ddim": {"objective": {"kind": "ddpm", "timesteps": 100}, "sampling": {"sampler": "ddim"}},
    "unipc": {"objective": {"kind": "ddpm", "timesteps": 100}, "sampling": {"sampler": "unipc"}},
    "ancestral": {"objective": {"kind": "ddpm", "timesteps": 100}, "sampling": {"sampler": "ddpm"}},
    "flow": {"objective": {"kind": "rectified_flow"}},
    "edm": {"objective": {"kind": "edm"}},
    "latent": {
        "objective": {"kind": "ddpm", "timesteps": 100},
        "latent_scale": 1.0,
        "first_stage": {
            "model": {
                "family": "vae",
                "config": {
                    "family": "vae",
                    "latent": {"kind": "kl", "channels": 2},
                    "network": {"channels": [4, 8], "norm_groups": 2},
                },
                "data": {"channels": 1, "height": 8, "width": 8},
            }
        },
    },
}


def config_of(member: str) -> DiffusionConfig:
    parts: dict[str, Any] = MEMBERS[member]
    tiny = {"kind": "unet", "channels": (8, 16), "head_dim": 8, "norm_groups": 4}
    sampling = {"steps": 6, **parts.get("sampling", {})}
    return DiffusionConfig.model_validate(
        {"family": "diffusion", "network": tiny, **parts, "sampling": sampling}
    )


def model_of(config: Any, data: DataSpec = DATA) -> Generator:
    family, nets = config.build(data), {}
    for name in family.samplers:
        spec = family.nets[name]
        source: Any = family.nets[spec.source] if isinstance(spec, EmaOf) else spec
        with seeded(0, name):
            nets[name] = source.build()
            for weight in nets[name].parameters():
                if weight.dim() > 1:
                    nn.init.normal_(weight, std=0.1)
    return Generator(config, data, nets)


def images(number: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (number, 8, 8, 1), dtype=np.uint8)


def edit(model: Generator, operation: Operation, pixels: np.ndarray, mask: np.ndarray | None = None) -> Edit:
    return Edit(
        images=Listed("image", from_uint8(pixels)),
        masks=None if mask is None else Listed("image", from_uint8(mask)),
        source=model.takes.source(),
        operation=operation,
        options=options_for(operation, model, {}),
        seed=3,
    )

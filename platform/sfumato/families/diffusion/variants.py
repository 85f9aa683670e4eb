"""The smallest real instance of every member of the family, as it would stand in a recipe."""

from __future__ import annotations

from typing import Any

TINY_UNET = {"channels": [8, 16], "head_dim": 8, "norm_groups": 4}
TINY_DIT = {"kind": "dit", "patch": 2, "width": 16, "depth": 2, "heads": 2}


TINY_AUTOENCODER = {
    "family": "vae",
    "latent": {"kind": "kl", "channels": 2},
    "network": {"channels": [4, 8], "norm_groups": 2},
}
SMALL_IMAGES = {"channels": 1, "height": 8, "width": 8}


def variants() -> dict[str, dict[str, Any]]:
    """Every objective, every network, every sampler that draws noise of its own, pixels and latents."""
    return {
        "ddpm": {
            "network": TINY_UNET,
            "objective": {"kind": "ddpm", "timesteps": 20},
            "sampling": {"steps": 3, "guidance": 1.5, "likelihood_steps": 4},
        },
        "dit": {
            "network": TINY_DIT,
            "objective": {"kind": "rectified_flow"},
            "sampling": {"steps": 3, "guidance": 1.5},
        },
        "edm": {
            "network": TINY_UNET,
            "objective": {"kind": "edm"},
            "sampling": {"steps": 3, "churn": 1.0},
        },
        "consistency": {
            "network": TINY_UNET,
            "objective": {
                "kind": "consistency",
                "curriculum": {"growth": "root", "first": 4, "last": 8},
                "teacher_decay": 0.9,
            },
            "sampling": {"steps": 2},
        },
        "latent": {
            "network": {**TINY_DIT, "patch": 1},
            "objective": {"kind": "rectified_flow"},
            "first_stage": {"model": {"family": "vae", "config": TINY_AUTOENCODER, "data": SMALL_IMAGES}},
            "sampling": {"sampler": "euler", "steps": 2},
        },
    }

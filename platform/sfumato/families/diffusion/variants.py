"""The smallest real instance of every member of the family, as in a recipe."""

from __future__ import annotations

from typing import Any

from sfumato.families.diffusion.adapters import ADAPTERS
from sfumato.families.diffusion.distillation.teacher import TaughtConfig
from sfumato.families.diffusion.networks import NETWORKS, TextNetworkConfig
from sfumato.families.diffusion.objectives import OBJECTIVES
from sfumato.text.encoders import ENCODERS

PAIRED = "rectified_flow"
"""The objective that trains the networks other than the default one."""
TINY_AUTOENCODER = {
    "family": "vae",
    "latent": {"kind": "kl", "channels": 2},
    "network": {"channels": [4, 8], "norm_groups": 2},
}
TINY_ENCODER = {
    "library": "transformers",
    "name": "Dinov2Model",
    "config": {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 2,
    },
}
SMALL_IMAGES = {"channels": 1, "height": 8, "width": 8}


def variants() -> dict[str, dict[str, Any]]:
    """Every objective, every network, every sampler that draws its own noise, pixels and latents, a variance
    learned from noise levels that are spread over the global batch, and adapters."""
    found = {"ddpm": _member(NETWORKS.default, "ddpm")}
    others = [name for name, kind in NETWORKS.all().items() if not kind.of_pretrained]
    found |= {name: _member(name, PAIRED) for name in others if name != NETWORKS.default}
    found |= {name: _member(NETWORKS.default, name) for name in OBJECTIVES.names() if name != PAIRED}
    return found | {
        "min_snr": {
            **_member("dit", "ddpm"),
            "objective": {"kind": "ddpm", "timesteps": 20, "weighting": "min_snr"},
        },
        "learned_variance": {
            "network": NETWORKS.find(NETWORKS.default).tiny(),
            "objective": {
                "kind": "ddpm",
                "timesteps": 20,
                "variance": "learned",
                "weighting": "p2",
                "stratified": True,
            },
            "sampling": {"sampler": "ddpm", "steps": 3, "guidance": 1.5, "likelihood_steps": 4},
        },
        "latent": {
            **_member("dit", "rectified_flow"),
            "network": NETWORKS.find("dit").tiny().model_copy(update={"patch": 1}),
            "first_stage": {"model": {"family": "vae", "config": TINY_AUTOENCODER, "data": SMALL_IMAGES}},
            "sampling": {"sampler": "euler", "steps": 2},
        },
        **{
            name: {
                **_member("library_text", "ddpm"),
                "pretrained": {"library": NETWORKS.find("library_text").tiny().model_dump()["model"]},
                "adapter": ADAPTERS.find(name).tiny(),
            }
            for name in ("lora", "controlnet", "instruct", "reference", "ip_adapter")
        },
        "edm2": {**_member("edm2", "edm"), "objective": {"kind": "edm", "uncertainty": True}},
        "augmented": {**_member("ddpmpp", "edm"), "objective": {"kind": "edm", "augment": 0.5}},
        "aligned": {
            **_member("dit", PAIRED),
            "alignment": {"encoder": {"library": TINY_ENCODER}, "depth": 1, "hidden": 8},
        },
        "layers": {
            **_member("library", "ddpm"),
            "condition": "none",
            "sampling": {"steps": 3},
            "pretrained": {"library": NETWORKS.find("library").tiny().model_dump()["model"]},
            "adapter": ADAPTERS.find("layers").tiny(),
        },
    }


def _member(network: str, objective: str) -> dict[str, Any]:
    chosen = OBJECTIVES.find(objective)
    texts = issubclass(NETWORKS.find(network), TextNetworkConfig)
    return {
        **({"text": {"encoders": [ENCODERS.find("joint").tiny()]}} if texts else {}),
        **({"condition": "none"} if issubclass(chosen, TaughtConfig) else {}),  # as its tiny teacher
        "network": NETWORKS.find(network).tiny(),
        "objective": chosen.tiny(),
        "sampling": chosen.tiny_sampling(),
    }

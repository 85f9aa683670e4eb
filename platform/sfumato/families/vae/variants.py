"""The smallest real instances of the latents, for the tests that train every member of the family."""

from __future__ import annotations

from typing import Any

from sfumato.families.vae.coders import NetworkConfig
from sfumato.families.vae.latents import LATENTS, LatentConfig
from sfumato.families.vae.likelihoods import LIKELIHOODS
from sfumato.families.vae.quantizers import QUANTIZERS
from sfumato.families.vae.sharpening import AdversarialConfig

UNUSUAL: dict[str, Any] = {"free_bits": 0.1, "warmup_images": 1_000, "importance_samples": 3}


def latents() -> dict[str, LatentConfig]:
    """Each kind, each likelihood, each quantiser, each setting that changes the network or the loss."""
    gaussian, vq = LATENTS.find("gaussian").tiny(), LATENTS.find("vq").tiny()
    bernoulli = LIKELIHOODS.make("bernoulli")
    found = {
        "bernoulli": gaussian.model_copy(update={"likelihood": bernoulli, **UNUSUAL}),
        "pixel-scale": gaussian.model_copy(
            update={"likelihood": LIKELIHOODS.make("logistic", scale="pixel")}
        ),
    }
    found |= {
        name: gaussian.model_copy(update={"likelihood": LIKELIHOODS.find(name).tiny()})
        for name in LIKELIHOODS.names()
        if name not in ("bernoulli", "logistic")
    }
    found |= {name: LATENTS.find(name).tiny() for name in LATENTS.names() if name != "gaussian"}
    found["equivariant"] = LATENTS.find("kl").tiny().model_copy(update={"equivariance": 1.0})
    found["code-use"] = vq.model_copy(update={"code_use": True})
    return found | {
        name: vq.model_copy(update={"quantizer": QUANTIZERS.find(name).tiny()})
        for name in QUANTIZERS.names()
        if name != QUANTIZERS.default
    }


def sharpened() -> dict[str, dict[str, Any]]:
    """A KL autoencoder whose discriminator starts while the tests train."""
    small = AdversarialConfig(width=4, layers=1, start_images=64)
    return {"adversarial": {"latent": LATENTS.find("kl").tiny(), "adversarial": small}}


def deep() -> dict[str, dict[str, Any]]:
    """A KL autoencoder of DC-AE's kind, with attention."""
    network = NetworkConfig(channels=(4, 8), residual=True, mid_attention=True)
    return {"deep": {"latent": LATENTS.find("kl").tiny(), "network": network}}

"""What other families may use of a trained autoencoder."""

from __future__ import annotations

from sfumato.core.batch import DataSpec
from sfumato.core.first_stage import StageSpec
from sfumato.families.vae.config import KlLatent, VaeConfig, VqLatent
from sfumato.families.vae.kl import KlAutoencoder
from sfumato.families.vae.quantizer import num_codes
from sfumato.families.vae.vq import VqAutoencoder


def stage_spec(config: VaeConfig, data: DataSpec) -> StageSpec | None:
    """The averaged network, its grid and its codes; None for the Gaussian VAE, whose latents are no grid."""
    latent, factor = config.latent, config.network.factor
    grid = (data.height // factor, data.width // factor)
    if isinstance(latent, KlLatent):
        return StageSpec(
            network="ema", build=lambda: KlAutoencoder(config, latent, data), latent=(latent.channels, *grid)
        )
    if isinstance(latent, VqLatent):
        return StageSpec(
            network="ema",
            build=lambda: VqAutoencoder(config, latent, data),
            latent=(latent.channels, *grid),
            num_codes=num_codes(latent.quantizer),
        )
    return None

"""What other families may use of a trained autoencoder; describing it loads no network."""

from __future__ import annotations

from torch import nn

from sfumato.core.batch import DataSpec
from sfumato.core.first_stage import StageSpec
from sfumato.families.vae.config import GaussianLatent, KlLatent, VaeConfig


def stage_spec(config: VaeConfig, data: DataSpec) -> StageSpec | None:
    """The averaged network, its grid and its codes; None for the Gaussian VAE, whose latents are no grid."""
    latent, factor = config.latent, config.network.factor
    if isinstance(latent, GaussianLatent):
        return None

    def build() -> nn.Module:
        from sfumato.families.vae.kl import KlAutoencoder  # loads diffusers
        from sfumato.families.vae.vq import VqAutoencoder

        if isinstance(latent, KlLatent):
            return KlAutoencoder(config, latent, data)
        return VqAutoencoder(config, latent, data)

    return StageSpec(
        network="ema",
        build=build,
        latent=(latent.channels, data.height // factor, data.width // factor),
        num_codes=0 if isinstance(latent, KlLatent) else latent.quantizer.codes,
    )

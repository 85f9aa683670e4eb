"""A trained model of texts and latents as a stock pipeline of diffusers, which needs none of Sfumato's code.

    StableDiffusionPipeline    unet_text with ddpm      DiffusionPipeline.from_pretrained(folder)(prompt=...)
    StableDiffusionXLPipeline  with pooled_with_size    (..., original_size=SIZE, target_size=SIZE)
    PixArtAlphaPipeline        pixart with ddpm         (..., use_resolution_binning=False)
    StableDiffusion3Pipeline   mmdit, rectified flow    (..., sigmas=[1 - i / n for i in range(n)])

From the same noise they draw what Sfumato draws, if called with the recipe's steps and guidance, and with
`model.text.prefix` in front of the prompts.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from sfumato.core.family import Nets
from sfumato.core.first_stage import InDiffusers
from sfumato.errors import ConfigError
from sfumato.families.diffusion.interchange.export import stock
from sfumato.families.diffusion.networks import PipelineParts, TextNetworkConfig
from sfumato.text.condition import TextCondition
from sfumato.text.network import TextConditioned


def text_pipeline(
    config: TextNetworkConfig,
    network: TextConditioned,
    nets: Nets,
    text: TextCondition,
    stage: tuple[nn.Module, float],
    scheduler: Any,
    flow: Any,
    options: Any,
) -> Any:
    """The pipeline. `stage` is the first stage with the scale of its latents; of the schedulers one is None.

    Raises ConfigError if diffusers has none that draws the same.
    """
    autoencoder, scale = stage
    if not isinstance(autoencoder, InDiffusers):
        raise ConfigError(
            "diffusers' pipelines decode by an AutoencoderKL; export a model on a first stage with "
            "latent.kind=kl"
        )
    if scheduler is not None:
        scheduler = stock(scheduler, options)
        if scheduler.config.get("variance_type") == "learned_range":
            raise ConfigError("model.objective.variance: pipelines of texts have fixed variances")
    if not config.hides_padding and any(e.padding == "zero" for e in text.encoders.values()):
        raise ConfigError(
            "model.text.encoders: diffusers' pipeline shows the encoder's states of padding, this model was "
            "trained with padding=zero; use --format safetensors"
        )
    models = [
        encoder.in_diffusers(network.encoders[name] if name in network.encoders else nets[name])
        for name, encoder in text.encoders.items()
    ]
    return config.pipeline(
        PipelineParts(
            network=network.network,
            vae=autoencoder.in_diffusers(scale),
            encoders=list(text.encoders.values()),
            models=models,
            scheduler=scheduler,
            flow=flow,
        )
    )

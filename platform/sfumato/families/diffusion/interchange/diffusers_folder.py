"""A trained model as diffusers loads it: its adapter alone, or a whole pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sfumato.core.family import Nets
from sfumato.errors import ConfigError
from sfumato.families.diffusion.adapters import AdapterConfig
from sfumato.families.diffusion.backbone import of_texts
from sfumato.families.diffusion.latent import NAME, scaled
from sfumato.families.diffusion.networks import TextNetworkConfig
from sfumato.families.diffusion.parts import Parts


def write(parts: Parts, nets: Nets, folder: Path, options: Any) -> None:
    """Write the folder of a model of these parts, which samples by `options`.

    Raises ConfigError for members of the family that diffusers has no pipeline for.
    """
    adapter = parts.config.adapter
    if adapter is not None and _wrote_adapter(parts, adapter, nets, folder):
        return
    if parts.text is not None:
        _text_pipeline(parts, nets, options).save_pretrained(folder)
        return
    from sfumato.families.diffusion.interchange.export import write_pipeline  # loads diffusers' pipelines

    objective, network, latent = parts.config.objective, parts.config.network, parts.space is not None
    scheduler = None
    if network.for_diffusers and not latent:
        scheduler = parts.objective.diffusers_scheduler(options, clip=parts.clips(options))
    if scheduler is None:
        raise ConfigError(
            f"diffusers has no pipeline for objective {objective.kind!r} with network {network.kind!r} "
            f"on {'latents' if latent else 'pixels'}, only for 'ddpm' with 'unet' on pixels; "
            "use --format safetensors"
        )
    write_pipeline(folder, nets["ema"], scheduler, options, conditional=parts.conditional)


def _wrote_adapter(parts: Parts, adapter: AdapterConfig, nets: Nets, folder: Path) -> bool:
    """Write the adapter alone, in the form that diffusers loads onto its base, if it has one."""
    network = parts.config.network
    kind = network.base_kind if isinstance(network, TextNetworkConfig) else network.kind
    files = adapter.files(nets, kind)
    if files is not None:
        files.write(folder, folder.name)
    return files is not None


def _text_pipeline(parts: Parts, nets: Nets, options: Any) -> Any:
    from sfumato.families.diffusion.interchange.export_text import text_pipeline  # loads diffusers' pipelines

    if parts.space is None:
        raise ConfigError(
            "diffusers' pipelines of texts work on latents, this model on pixels; use --format safetensors"
        )
    flow, scheduler = parts.objective.diffusers_flow(options), None
    if flow is None:
        scheduler = parts.objective.diffusers_scheduler(options, clip=False)
    config, adapter = parts.config.network, parts.config.adapter
    assert isinstance(config, TextNetworkConfig), "checked among the problems"
    assert parts.text is not None
    scale = scaled(nets["ema"]).latent_scale
    if scale.dim():
        raise ConfigError(
            "diffusers' pipelines have one factor for all channels of latents, this model one for each "
            "(model.latent_norm=channel); use --format safetensors"
        )
    stage = (nets[NAME], float(scale))
    network = of_texts(nets["ema"])
    pipeline = text_pipeline(config, network, nets, parts.text, stage, scheduler, flow, options)
    return pipeline if adapter is None else adapter.in_pipeline(pipeline)

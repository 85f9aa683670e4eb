"""Tiny pipelines of diffusers with random weights, saved by diffusers' own classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from text_folders import save_tokenizer, text_model
from torch import nn

from sfumato.core.rng import seeded

KINDS = ("sd", "sd2", "xl", "sd3", "pixart", "ddpm")
LATENT_CHANNELS = 2
SIDE = 8
"""Of images; latents have half of it."""
_VAE: dict[str, Any] = {
    "in_channels": 1,
    "out_channels": 1,
    "latent_channels": LATENT_CHANNELS,
    "block_out_channels": (4, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 2,
}
_UNET: dict[str, Any] = {
    "sample_size": SIDE // 2,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "layers_per_block": 1,
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "norm_num_groups": 4,
}
_TRANSFORMER: dict[str, Any] = {
    "sample_size": SIDE // 2,
    "patch_size": 2,
    "in_channels": LATENT_CHANNELS,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
}
_OF_SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}


def save_pipeline(folder: Path, kind: str) -> Path:
    """One of `KINDS`: `sd2` predicts v and has linear projections; `ddpm` is unconditional on pixels. Or
    `sd_four`, `sd` with as many channels of latents as the real one."""
    folder.mkdir(parents=True, exist_ok=True)
    with seeded(0, kind):
        pipeline = globals()[f"_{kind}"](folder)
    pipeline.save_pretrained(folder)
    return folder


def lively(network: nn.Module) -> Any:
    """With weights whose effect shows, since gates and last layers start at zero."""
    for weight in network.parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=0.15)
    return network.eval()


def _sd(folder: Path, prediction: str = "epsilon", **unet: Any) -> Any:
    from diffusers import PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    network = {**_UNET, "attention_head_dim": 2, "cross_attention_dim": 8, **unet}
    return StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=text_model("clip"),
        tokenizer=_tokenizer(folder),
        unet=lively(UNet2DConditionModel(**network)),
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            skip_prk_steps=True,
            prediction_type=prediction,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sd_four(folder: Path) -> Any:
    pipeline = _sd(folder, in_channels=4, out_channels=4)
    pipeline.register_modules(vae=_vae(latent_channels=4))
    return pipeline


def _sd2(folder: Path) -> Any:
    return _sd(folder, "v_prediction", use_linear_projection=True, attention_head_dim=(1, 2))


def _xl(folder: Path) -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    network = {
        **_UNET,
        "attention_head_dim": (1, 2),
        "cross_attention_dim": 16,
        "use_linear_projection": True,
    }
    added = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 + 6 * 8,
    }
    return StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=text_model("clip"),
        tokenizer=_tokenizer(folder),
        text_encoder_2=text_model("clip_projected"),
        tokenizer_2=_tokenizer(folder),
        unet=lively(UNet2DConditionModel(**network, **added)),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading"
        ),
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )


def _sd3(folder: Path) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    network = {"joint_attention_dim": 32, "caption_projection_dim": 16, "pooled_projection_dim": 12}
    transformer = SD3Transformer2DModel(
        **_TRANSFORMER, **network, num_layers=1, out_channels=LATENT_CHANNELS, pos_embed_max_size=4
    )
    return StableDiffusion3Pipeline(
        vae=_vae(scaling_factor=1.5, shift_factor=0.1),
        text_encoder=text_model("clip_projected"),
        tokenizer=_tokenizer(folder),
        text_encoder_2=text_model("clip_projected", seed=1),
        tokenizer_2=_tokenizer(folder),
        text_encoder_3=text_model("t5_wide"),
        tokenizer_3=_tokenizer(folder, clip=False),
        transformer=lively(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def _pixart(folder: Path) -> Any:
    from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel

    network = {"cross_attention_dim": 16, "caption_channels": 8, "use_additional_conditions": False}
    transformer = PixArtTransformer2DModel(
        **_TRANSFORMER, **network, num_layers=1, out_channels=2 * LATENT_CHANNELS
    )
    return PixArtAlphaPipeline(
        vae=_vae(),
        text_encoder=text_model("t5"),
        tokenizer=_tokenizer(folder, clip=False),
        transformer=lively(transformer),
        scheduler=DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
    )


def _ddpm(folder: Path) -> Any:
    from diffusers import DDPMPipeline, DDPMScheduler
    from library_folders import tiny_unet

    return DDPMPipeline(unet=lively(tiny_unet()), scheduler=DDPMScheduler(beta_schedule="linear"))


def _vae(**fields: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(**{**_VAE, "scaling_factor": 1.7, **fields}).eval()


def _tokenizer(folder: Path, *, clip: bool = True) -> Any:
    from transformers import CLIPTokenizer

    tokenizer = save_tokenizer(folder / "scratch-tokenizer")
    if clip:  # as pipelines have it, whose class cuts words its own way
        tokenizer = CLIPTokenizer.from_pretrained(folder / "scratch-tokenizer")
    tokenizer.model_max_length = 9
    return tokenizer


@torch.no_grad()
def noise(seed: int, rows: int, *shape: int) -> Any:
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(seed))

"""Tiny networks of diffusers and transformers with random weights, in folders that their libraries write."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DModel

from sfumato.core.rng import seeded

_WORDS = ("a", "b", "c", "a</w>", "b</w>", "c</w>", "<|startoftext|>", "<|endoftext|>")


def tiny_unet(seed: int = 0) -> UNet2DModel:
    with seeded(seed, "library"):
        return UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            attention_head_dim=4,
        )


def save_unet(folder: Path, seed: int = 0, **options: object) -> Path:
    """A U-Net of one channel and side 8."""
    tiny_unet(seed).save_pretrained(folder, **options)
    return folder


def tiny_autoencoder() -> AutoencoderKL:
    with seeded(0, "library"):
        return AutoencoderKL(
            in_channels=1,
            out_channels=1,
            latent_channels=2,
            block_out_channels=(8,),
            down_block_types=("DownEncoderBlock2D",),
            up_block_types=("UpDecoderBlock2D",),
            norm_num_groups=4,
        )


def tiny_text_model() -> torch.nn.Module:
    """CLIP's text model, for the tokens of `save_text_encoder`."""
    from transformers import CLIPTextConfig, CLIPTextModel

    words = len(_WORDS)
    with seeded(0, "library"):
        return CLIPTextModel(
            CLIPTextConfig(
                vocab_size=words,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=9,
                bos_token_id=words - 2,
                eos_token_id=words - 1,
            )
        ).eval()


def save_text_encoder(folder: Path) -> Path:
    """The text model with its tokenizer."""
    tiny_text_model().save_pretrained(folder)
    save_clip_tokenizer(folder)
    return folder


def save_clip_tokenizer(folder: Path) -> None:
    """A tokenizer whose words are a, b and c."""
    numbers = {word: number for number, word in enumerate(_WORDS)}
    (folder / "vocab.json").write_text(json.dumps(numbers))
    (folder / "merges.txt").write_text("#version: 0.2\n")

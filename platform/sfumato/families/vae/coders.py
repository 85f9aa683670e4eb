"""Encoder and decoder: those of latent diffusion's autoencoders, from diffusers."""

from __future__ import annotations

from diffusers.models.autoencoders.vae import Decoder, Encoder
from torch import nn

from sfumato.families.vae.config import NetworkConfig


def encoder(config: NetworkConfig, inputs: int, outputs: int) -> nn.Module:
    """[B, inputs, H, W] to [B, outputs, H / factor, W / factor]."""
    network: nn.Module = Encoder(
        in_channels=inputs,
        out_channels=outputs,
        down_block_types=("DownEncoderBlock2D",) * len(config.channels),
        block_out_channels=config.channels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_groups,
        double_z=False,
        mid_block_add_attention=config.mid_attention,
    )
    return network


def decoder(config: NetworkConfig, inputs: int, outputs: int) -> nn.Module:
    """[B, inputs, H / factor, W / factor] to [B, outputs, H, W]."""
    network: nn.Module = Decoder(
        in_channels=inputs,
        out_channels=outputs,
        up_block_types=("UpDecoderBlock2D",) * len(config.channels),
        block_out_channels=config.channels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_groups,
        mid_block_add_attention=config.mid_attention,
    )
    return network

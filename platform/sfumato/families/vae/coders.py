"""Encoder and decoder: those of latent diffusion's autoencoders, from diffusers."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator
from torch import nn

from sfumato.core.config import Config
from sfumato.layers.group_norm import check_widths


class NetworkConfig(Config):
    """Size of encoder and decoder (diffusers' `Encoder` and `Decoder`, as in latent diffusion)."""

    channels: tuple[int, ...] = Field(
        (32, 64),
        min_length=1,
        description="Channels of each level; every level after the first halves the side.",
    )
    layers_per_block: int = Field(
        1, ge=1, description="Residual blocks of a level (the decoder has one more)."
    )
    mid_attention: bool = Field(False, description="Self-attention at the lowest resolution.")
    norm_groups: int = Field(8, ge=1, description="Groups of every group normalisation.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_widths(self.channels, self.norm_groups)
        return self

    @property
    def factor(self) -> int:
        """The number of image pixels per pixel of the lowest resolution, along a side."""
        return 1 << (len(self.channels) - 1)


def encoder(config: NetworkConfig, inputs: int, outputs: int) -> nn.Module:
    """[B, inputs, H, W] to [B, outputs, H / factor, W / factor]."""
    from diffusers.models.autoencoders.vae import Encoder  # takes seconds, so only when a network is built

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
    from diffusers.models.autoencoders.vae import Decoder

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

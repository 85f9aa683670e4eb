"""Encoder and decoder, from diffusers: those of latent diffusion's autoencoders, or of DC-AE."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, Self

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
    residual: bool = Field(
        False,
        description="Deep compression (DC-AE; Chen et al. 2025, sec. 3.1): beside the convolutions of every "
        "change of resolution, pixels become channels and back without weights. Norms are of single pixels.",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.residual:
            check_widths(self.channels, self.norm_groups)
            return self
        if self.norm_groups != 8:
            raise ValueError("norm_groups: has no effect with residual=true; leave it out")
        for upper, lower in pairwise(self.channels):
            if lower % 4 or 4 * upper % lower:
                raise ValueError(
                    f"channels: residual turns 4 x {upper} channels of a level into the next one's, which "
                    f"must be a multiple of 4 and divide {4 * upper}; got {lower}"
                )
        return self

    @property
    def factor(self) -> int:
        """The number of image pixels per pixel of the lowest resolution, along a side."""
        return 1 << (len(self.channels) - 1)


def encoder(config: NetworkConfig, inputs: int, outputs: int) -> nn.Module:
    """[B, inputs, H, W] to [B, outputs, H / factor, W / factor]."""
    if config.residual:
        # These modules take seconds to import, so only when a network is built.
        from diffusers.models.autoencoders import autoencoder_dc

        shortcut = config.channels[-1] % outputs == 0
        return autoencoder_dc.Encoder(inputs, outputs, out_shortcut=shortcut, **_deep(config))  # type: ignore[no-any-return]
    from diffusers.models.autoencoders.vae import Encoder

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
    if config.residual:
        from diffusers.models.autoencoders import autoencoder_dc

        shortcut = config.channels[-1] % inputs == 0
        return autoencoder_dc.Decoder(outputs, inputs, in_shortcut=shortcut, **_deep(config))  # type: ignore[no-any-return]
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


def _deep(config: NetworkConfig) -> dict[str, Any]:
    """What encoder and decoder of DC-AE share; attention is EfficientViT's, at the lowest resolution."""
    levels, last = len(config.channels), config.channels[-1]
    lowest = "EfficientViTBlock" if config.mid_attention else "ResBlock"
    return {
        "attention_head_dim": math.gcd(32, last),
        "block_type": ("ResBlock",) * (levels - 1) + (lowest,),
        "block_out_channels": config.channels,
        "layers_per_block": (config.layers_per_block,) * levels,
        "qkv_multiscales": ((),) * levels,
    }

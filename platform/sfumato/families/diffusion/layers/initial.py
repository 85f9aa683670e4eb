"""Initial weights of diffusers' transformers, whose classes leave them as torch draws them.

Linear layers are Xavier's with zero biases, time embeddings small. What scales, shifts and gates a block
starts at zero, and so does the last layer: a fresh block is the identity and a fresh network answers zero
(Peebles & Xie 2023, sec. 3.2: adaLN-Zero; Esser et al. 2024 and Flux build on it). PixArt's modulation is one
layer for all blocks plus a table of its own; there the cross-attention starts at zero instead (the authors'
code).
"""

from __future__ import annotations

from torch import nn

SMALL = 0.02
"""Standard deviation of the weights of embeddings."""


def adaln_zero(transformer: nn.Module) -> None:
    """Give a transformer of diffusers the weights that adaLN-Zero starts from, drawn from torch's global
    generator."""
    from diffusers.models.embeddings import PatchEmbed, TimestepEmbedding
    from diffusers.models.normalization import (
        AdaLayerNormContinuous,
        AdaLayerNormZero,
        AdaLayerNormZeroSingle,
        SD35AdaLayerNormZeroX,
    )

    modulations = (AdaLayerNormContinuous, AdaLayerNormZero, AdaLayerNormZeroSingle, SD35AdaLayerNormZeroX)
    _xavier(transformer)
    for module in transformer.modules():
        if isinstance(module, TimestepEmbedding):
            _small(module)
        elif isinstance(module, PatchEmbed) and isinstance(module.proj, nn.Conv2d):
            nn.init.xavier_uniform_(module.proj.weight.view(len(module.proj.weight), -1))
            _zero_bias(module.proj)
        elif isinstance(module, modulations):
            nn.init.zeros_(module.linear.weight)
    nn.init.zeros_(transformer.get_submodule("proj_out").weight)  # type: ignore[arg-type]


def pixart(transformer: nn.Module) -> None:
    """Give a `PixArtTransformer2DModel` the weights that its authors start from."""
    adaln_zero(transformer)
    _small(transformer.get_submodule("adaln_single"))
    _small(transformer.get_submodule("caption_projection"))
    for name, module in transformer.named_modules():
        if name.endswith("attn2.to_out.0"):
            nn.init.zeros_(module.weight)


def _xavier(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            _zero_bias(module)


def _small(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=SMALL)


def _zero_bias(layer: nn.Linear | nn.Conv2d) -> None:
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)

"""Quantisers: from vectors to the nearest of finitely many codes, with gradients that go straight through.

Both are vector-quantize-pytorch's. What they learn are parameters alone: codebooks that follow the data by
moving averages or are re-seeded from it would have to agree between ranks outside of the strategies, and
would couple the rows of a batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from vector_quantize_pytorch import FSQ, SimVQ

from sfumato.families.vae.config import LearnedCodebook, ScalarQuantizer


class Quantized(NamedTuple):
    """What became of latents [B, C, h, w]."""

    straight_through: Tensor
    """The codes' vectors; their gradient passes to the latents unchanged."""
    codes_Bhw: Tensor
    """int64."""
    loss_B: Tensor
    """What keeps codes and latents together, already weighted."""


class CodebookQuantizer(nn.Module):
    """Nearest code in Euclidean distance; the codebook is a learned linear map of fixed random vectors."""

    def __init__(self, config: LearnedCodebook, channels: int) -> None:
        super().__init__()
        self._commitment = config.commitment
        self.codebook = SimVQ(
            dim=channels, codebook_size=config.size, channel_first=True, rotation_trick=False
        )

    def forward(self, z_BChw: Tensor) -> Quantized:
        """Codes, and |sg(z) - e|^2 + commitment |z - sg(e)|^2 (van den Oord et al. 2017, eq. 3) a row."""
        with torch.autocast(z_BChw.device.type, enabled=False):
            z_BChw = z_BChw.float()
            straight, codes_Bhw, _ = self.codebook(z_BChw)
            e_BChw = self.vectors(codes_Bhw)
        to_codes_B = ((z_BChw.detach() - e_BChw) ** 2).flatten(1).mean(dim=1)
        to_latents_B = ((z_BChw - e_BChw.detach()) ** 2).flatten(1).mean(dim=1)
        return Quantized(straight, codes_Bhw, to_codes_B + self._commitment * to_latents_B)

    def vectors(self, codes_Bhw: Tensor) -> Tensor:
        """The codes' vectors, [B, C, h, w]."""
        vectors: Tensor = self.codebook.indices_to_codes(codes_Bhw)
        return vectors


class FsqQuantizer(nn.Module):
    """Rounding of a few bounded channels; nothing to keep together, so the loss is zero."""

    def __init__(self, config: ScalarQuantizer, channels: int) -> None:
        super().__init__()
        self.rounding = FSQ(list(config.levels), dim=channels, channel_first=True)

    def forward(self, z_BChw: Tensor) -> Quantized:
        with torch.autocast(z_BChw.device.type, enabled=False):
            straight, codes_Bhw = self.rounding(z_BChw.float())
        return Quantized(straight, codes_Bhw.long(), z_BChw.new_zeros(len(z_BChw), dtype=torch.float32))

    def vectors(self, codes_Bhw: Tensor) -> Tensor:
        """The codes' vectors, [B, C, h, w]."""
        vectors: Tensor = self.rounding.indices_to_codes(codes_Bhw)
        return vectors


def build_quantizer(
    config: LearnedCodebook | ScalarQuantizer, channels: int
) -> CodebookQuantizer | FsqQuantizer:
    if isinstance(config, LearnedCodebook):
        return CodebookQuantizer(config, channels)
    return FsqQuantizer(config, channels)

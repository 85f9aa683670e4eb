"""Codes that are a learned linear map of fixed random ones (SimVQ, Zhu et al. 2024)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field
from torch import Tensor

from sfumato.families.vae.quantizers import Quantized, Quantizer, QuantizerConfig
from sfumato.layers.full_precision import full_precision


class LearnedCodebook(QuantizerConfig):
    """Codes that are a learned linear map of fixed random ones (SimVQ, Zhu et al. 2024)."""

    kind: Literal["codebook"] = Field("codebook", description="Selects a learned codebook.")
    size: int = Field(512, ge=2, description="Number of codes.")
    commitment: float = Field(
        0.25, ge=0, description="Weight of the encoder's distance from its codes (van den Oord et al. 2017)."
    )

    @property
    def learned(self) -> int:
        """All of a codebook."""
        return self.size

    @property
    def codes(self) -> int:
        return self.size

    @classmethod
    def tiny(cls) -> Self:
        """16 codes."""
        return cls(size=16)

    def build(self, channels: int) -> CodebookQuantizer:
        """With its codebook."""
        return CodebookQuantizer(self, channels)


class CodebookQuantizer(Quantizer):
    """Nearest code in Euclidean distance; the codebook is a learned linear map of fixed random vectors."""

    def __init__(self, config: LearnedCodebook, channels: int) -> None:
        super().__init__()
        from vector_quantize_pytorch import SimVQ  # takes seconds, so only when a network is built

        self._commitment = config.commitment
        self.codebook = SimVQ(
            dim=channels, codebook_size=config.size, channel_first=True, rotation_trick=False
        )

    def forward(self, z_BChw: Tensor) -> Quantized:
        """Codes, and |sg(z) - e|^2 + commitment |z - sg(e)|^2 (van den Oord et al. 2017, eq. 3) per row."""
        with full_precision(self.codebook, z_BChw.device):
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


COMPONENT = LearnedCodebook

"""Residual quantisation: a vector is a sum of codes, each nearest to what the ones before leave.

Zeghidour et al. 2021 (SoundStream), alg. 1; Lee et al. 2022 (RQ-VAE), eq. 2 and 3. The D codes of a position
are one number, its digits in base K with the first code leading, so that models of codes need not know.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from sfumato.families.vae.quantizers import Quantized, Quantizer, QuantizerConfig
from sfumato.families.vae.quantizers.codebook import LearnedCodebook

MOST_CODES = 2**31


class ResidualCodebooks(QuantizerConfig):
    """A sum of codes from several codebooks, coarse to fine (SoundStream; RQ-VAE)."""

    kind: Literal["residual"] = Field("residual", description="Selects residual quantisation.")
    size: int = Field(64, ge=2, description="K: codes of each codebook.")
    depth: int = Field(2, ge=1, description="D: codebooks, one after the other.")
    commitment: float = Field(
        0.25, ge=0, description="Weight of the encoder's distance from each partial sum of codes."
    )

    @model_validator(mode="after")
    def _countable(self) -> Self:
        if self.size**self.depth > MOST_CODES:
            most = next(depth for depth in range(self.depth, 0, -1) if self.size**depth <= MOST_CODES)
            raise ValueError(
                f"depth: {self.depth} codes of {self.size} have more than 2^31 combinations; use {most}"
            )
        return self

    @property
    def learned(self) -> int:
        """All of a codebook."""
        return self.size

    @property
    def codes(self) -> int:
        """All combinations."""
        return int(self.size**self.depth)

    @property
    def tally_shape(self) -> tuple[int, int]:
        return self.depth, self.size

    @classmethod
    def tiny(cls) -> Self:
        """Two codebooks of 4."""
        return cls(size=4)

    def build(self, channels: int) -> ResidualQuantizer:
        """With its codebooks."""
        return ResidualQuantizer(self, channels)

    def digits(self, codes_Bhw: Tensor) -> Tensor:
        """The codes of each codebook, int64 [D, B, h, w]."""
        places = [self.size ** (self.depth - 1 - number) for number in range(self.depth)]
        return torch.stack([codes_Bhw // place % self.size for place in places])


class ResidualQuantizer(Quantizer):
    """Codebooks of learned linear maps (SimVQ), each for what is left."""

    def __init__(self, config: ResidualCodebooks, channels: int) -> None:
        super().__init__()
        self._config = config
        each = LearnedCodebook(size=config.size, commitment=config.commitment)
        self.books = nn.ModuleList(each.build(channels) for _ in range(config.depth))

    def forward(self, z_BChw: Tensor) -> Quantized:
        z_BChw = z_BChw.float()
        left = z_BChw
        total, loss_B = torch.zeros_like(z_BChw), z_BChw.new_zeros(len(z_BChw))
        codes_Bhw = torch.zeros_like(z_BChw[:, 0], dtype=torch.int64)
        for book in self.books:
            found: Quantized = book(left)
            chosen = found.straight_through.detach()
            left, total = left - chosen, total + chosen
            codes_Bhw = codes_Bhw * self._config.size + found.codes_Bhw
            loss_B = loss_B + found.loss_B
        return Quantized(z_BChw + (total - z_BChw).detach(), codes_Bhw, loss_B / len(self.books))

    def vectors(self, codes_Bhw: Tensor) -> Tensor:
        """The sums of the codes' vectors, [B, C, h, w]."""
        digits = self._config.digits(codes_Bhw)
        parts = []
        for book, each in zip(self.books, digits, strict=True):
            assert isinstance(book, Quantizer)
            parts.append(book.vectors(each))
        return torch.stack(parts).sum(dim=0)


COMPONENT = ResidualCodebooks

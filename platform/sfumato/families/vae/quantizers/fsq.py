"""Each channel rounded to a few levels: no codebook to learn (FSQ, Mentzer et al. 2024)."""

from __future__ import annotations

import math
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from sfumato.families.vae.quantizers import Quantized, Quantizer, QuantizerConfig
from sfumato.layers.full_precision import full_precision


class ScalarQuantizer(QuantizerConfig):
    """Each channel rounded to a few levels: no codebook to learn (FSQ, Mentzer et al. 2024)."""

    kind: Literal["fsq"] = Field("fsq", description="Selects finite scalar quantisation.")
    levels: tuple[int, ...] = Field(
        (8, 8, 8),
        min_length=1,
        description="Levels of each channel, 3 or more; their product is the number of codes.",
    )

    @model_validator(mode="after")
    def _levels(self) -> Self:
        if few := [level for level in self.levels if level < 3]:
            raise ValueError(f"levels: got {few[0]}, the least is 3")
        return self

    @property
    def codes(self) -> int:
        return math.prod(self.levels)

    @classmethod
    def tiny(cls) -> Self:
        """15 codes."""
        return cls(levels=(5, 3))

    def build(self, channels: int) -> FsqQuantizer:
        """Without a codebook."""
        return FsqQuantizer(self, channels)


class FsqQuantizer(Quantizer):
    """Rounding of a few bounded channels; nothing to keep together, so the loss is zero."""

    def __init__(self, config: ScalarQuantizer, channels: int) -> None:
        super().__init__()
        from vector_quantize_pytorch import FSQ  # takes seconds, so only when a network is built

        self.rounding = FSQ(list(config.levels), dim=channels, channel_first=True)

    def forward(self, z_BChw: Tensor) -> Quantized:
        with full_precision(self.rounding, z_BChw.device):
            straight, codes_Bhw = self.rounding(z_BChw.float())
        return Quantized(straight, codes_Bhw.long(), z_BChw.new_zeros(len(z_BChw), dtype=torch.float32))

    def vectors(self, codes_Bhw: Tensor) -> Tensor:
        """The codes' vectors, [B, C, h, w]."""
        vectors: Tensor = self.rounding.indices_to_codes(codes_Bhw)
        return vectors


COMPONENT = ScalarQuantizer

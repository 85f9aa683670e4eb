"""Quantisers: from vectors to the nearest of finitely many codes, with gradients that go straight through.

Those of vector-quantize-pytorch are wrapped so that what they learn are parameters alone: codebooks that follow the
data by moving averages or are re-seeded from it would have to agree between ranks outside of the strategies, and
would couple the rows of a batch. A file here is a quantiser: its configuration and the module that it builds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

from sfumato.core.components import Component, Components


class Quantized(NamedTuple):
    """What became of latents [B, C, h, w]."""

    straight_through: Tensor
    """The codes' vectors; their gradient passes to the latents unchanged."""
    codes_Bhw: Tensor
    """int64."""
    loss_B: Tensor
    """What keeps codes and latents together, already weighted."""


class Quantizer(nn.Module, ABC):
    """From latents to codes and back."""

    @abstractmethod
    def forward(self, z_BChw: Tensor) -> Quantized:
        """Latents of any float type [B, C, h, w]."""

    @abstractmethod
    def vectors(self, codes_Bhw: Tensor) -> Tensor:
        """The codes' vectors, [B, C, h, w]."""


class QuantizerConfig(Component, ABC):
    """Settings of a quantiser, which they build."""

    @property
    @abstractmethod
    def codes(self) -> int:
        """How many codes there are."""

    @abstractmethod
    def build(self, channels: int) -> Quantizer:
        """For vectors of so many channels."""


QUANTIZERS = Components("sfumato.families.vae.quantizers", QuantizerConfig, default="codebook")

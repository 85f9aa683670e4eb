"""Quantisers: from vectors to the nearest of finitely many codes, with gradients that go straight through.

Those of vector-quantize-pytorch are wrapped so that what they learn are parameters alone. A codebook that
follows the data by moving averages is state of the family (`core.state`), which all ranks agree on: its
configuration says how it advances. A file here is a quantiser: its configuration and the module that it
builds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from sfumato.core.components import Component, Components
from sfumato.core.rng import Rng
from sfumato.core.state import State


class Quantized(NamedTuple):
    """The quantised latents [B, C, h, w]."""

    straight_through: Tensor
    """The codes' vectors; their gradient passes to the latents unchanged."""
    codes_Bhw: Tensor
    """int64."""
    loss_B: Tensor
    """What keeps codes and latents together, already weighted."""


class Codebook(Protocol):
    """The vectors of all codes."""

    @property
    def vectors_KC(self) -> Tensor: ...


class Quantizer(nn.Module, ABC):
    """From latents to codes and back."""

    def use(self, codebook: Codebook) -> None:
        """Quantise by this codebook from now on; of a quantiser whose codebook is state of the family."""
        raise TypeError(f"{type(self).__name__} has its own codebook")

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
        """The number of codes."""

    @property
    def learned(self) -> int:
        """How many vectors of a codebook follow the data; 0 for codes that are fixed."""
        return 0

    @abstractmethod
    def build(self, channels: int) -> Quantizer:
        """For vectors of so many channels."""

    @property
    def tally_shape(self) -> tuple[int, int]:
        """(codebooks, codes of each), whose use is counted apart."""
        return 1, self.codes

    def digits(self, codes_Bhw: Tensor) -> Tensor:
        """The codes of each codebook, int64 [codebooks, B, h, w]."""
        return codes_Bhw[None]


class FollowingConfig(QuantizerConfig):
    """Settings of a quantiser whose codebook is state of the family and follows the latents."""

    @abstractmethod
    def state(self, channels: int) -> State:
        """The state before the first step."""

    @abstractmethod
    def codebook(self, state: State) -> Codebook:
        """The vectors that a step quantises by."""

    @abstractmethod
    def draws(self, rng: Rng, grid: tuple[int, int], batch: int) -> Tensor:
        """Noise that `sums` needs, int64 [B, h, w], for a global batch of `batch` rows."""

    @abstractmethod
    def sums(self, z_BChw: Tensor, codes_Bhw: Tensor, draws_Bhw: Tensor) -> Mapping[str, Tensor]:
        """The contribution of latents and their codes to the step's sums."""

    @abstractmethod
    def advance(self, state: State, sums: State) -> State:
        """The state after a step with these sums."""

    @abstractmethod
    def metrics(self, state: State) -> Mapping[str, Tensor]:
        """How the codes are used, as scalars."""


QUANTIZERS: Components[QuantizerConfig] = Components(
    "sfumato.families.vae.quantizers", QuantizerConfig, default="codebook"
)

"""Uniform noise fills the steps between the levels (Theis, van den Oord, Bethge 2016); log q is zero."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from sfumato.families.flow.dequantization import Dequantization, DequantizerNet
from sfumato.families.flow.levels import Shape


class UniformConfig(Dequantization):
    """Uniform noise fills the steps between the 256 levels (Theis, van den Oord, Bethge 2016)."""

    kind: Literal["uniform"] = Field("uniform", description="Selects uniform dequantisation.")

    def build(self, shape: Shape) -> Uniform:
        """Without parameters."""
        return Uniform()


class Uniform(DequantizerNet):
    """u uniform in [0, 1)."""

    def forward(self, k_BCHW: Tensor, noise_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """u [B, C, H, W] and log q(u | k) [B], from uniform noise."""
        return noise_BCHW, noise_BCHW.new_zeros(len(noise_BCHW))


COMPONENT = UniformConfig

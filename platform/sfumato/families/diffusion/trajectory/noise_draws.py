"""Random noise levels of a batch: independent, or spread evenly over their distribution.

Spread (Kingma et al. 2021, app. I.1), row i of a global batch of k rows gets u_i = (u + i/k) mod 1 with one
uniform u: every row's level keeps its distribution, and the mean loss of the batch varies less.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from sfumato.core.config import Config
from sfumato.core.rng import Rng

LEAST = 2.0**-25
"""Half the distance of two uniform numbers: keeps the normal quantile of 0 finite."""


class NoiseDraws(Config):
    """How an objective draws the noise levels of training."""

    stratified: bool = Field(
        False,
        description="Spread the noise levels of a global batch evenly over their distribution (Kingma et al. "
        "2021, app. I.1), so that its mean loss varies less.",
    )

    def uniform(self, rng: Rng) -> Tensor:
        """Uniform float32 in [0, 1), [B]."""
        return rng.stratified() if self.stratified else rng.uniform()

    def normal(self, rng: Rng) -> Tensor:
        """Standard normal float32, [B]."""
        return torch.special.ndtri(rng.stratified().clamp(min=LEAST)) if self.stratified else rng.normal()

    def integers(self, rng: Rng, high: int) -> Tensor:
        """Uniform int64 in [0, high), [B]."""
        if not self.stratified:
            return rng.integers(high)
        return (rng.stratified().double() * high).long().clamp(max=high - 1)

"""256 levels under a discretised logistic distribution."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato.families.vae.likelihoods import Likelihood, LikelihoodConfig
from sfumato.layers import discretized_logistic


class Logistic(Likelihood):
    """The scale is predicted by the decoder for every pixel, or learned per channel."""

    def __init__(self, channels: int, scale: Literal["pixel", "channel"]) -> None:
        super().__init__()
        own = scale == "channel"
        self.uniforms = channels
        self.outputs = channels if own else 2 * channels
        self.log_scale_C11 = nn.Parameter(torch.full((channels, 1, 1), -1.5)) if own else None

    def each(self, x_BCHW: Tensor, output_BOHW: Tensor) -> Tensor:
        """Of 8-bit images."""
        return discretized_logistic.log_prob(x_BCHW, *self._mean_and_scale(output_BOHW))

    def mean(self, output_BOHW: Tensor) -> Tensor:
        """The mean of the distribution."""
        return self._mean_and_scale(output_BOHW)[0].clamp(-1, 1)

    def draw(self, output_BOHW: Tensor, uniform_BUHW: Tensor) -> Tensor:
        """By inversion."""
        return discretized_logistic.sample(*self._mean_and_scale(output_BOHW), uniform_BUHW)

    def _mean_and_scale(self, output_BOHW: Tensor) -> tuple[Tensor, Tensor]:
        if self.log_scale_C11 is not None:
            return output_BOHW, self.log_scale_C11.float()
        mean, log_scale = output_BOHW.chunk(2, dim=1)
        return mean, log_scale


class LogisticConfig(LikelihoodConfig):
    """256 levels under a discretised logistic distribution."""

    kind: Literal["logistic"] = Field("logistic", description="Selects this likelihood.")
    scale: Literal["pixel", "channel"] = Field(
        "channel",
        description="Whether the decoder predicts a scale per pixel, or one is learned per channel.",
    )

    def build(self, channels: int) -> Logistic:
        """Build it with a scale per channel, or without parameters."""
        return Logistic(channels, self.scale)


COMPONENT = LogisticConfig

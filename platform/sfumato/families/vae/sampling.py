"""The sampling options of the family."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sfumato.core.config import Config


class SamplingConfig(Config):
    """How images are drawn; `sfumato sample` may change any of it."""

    temperature: float = Field(1.0, gt=0, description="Standard deviation of the latent vectors.")
    pixels: Literal["mean", "draw"] = Field(
        "mean", description="Show the mean of the pixels' distribution, or draw from it."
    )

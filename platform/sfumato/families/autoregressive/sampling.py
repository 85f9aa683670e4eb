"""The sampling options of the family."""

from __future__ import annotations

from pydantic import Field

from sfumato.core.config import Config


class SamplingConfig(Config):
    """How images are drawn; `sfumato sample` may change any of it."""

    temperature: float = Field(1.0, gt=0, description="Divides the logits: below 1 draws likelier values.")
    top_k: int = Field(0, ge=0, description="Draw only from this many likeliest values; 0 means all of them.")
    guidance: float = Field(
        1.0, ge=0, description="Classifier-free guidance weight of the transformer; 1 is the plain model."
    )

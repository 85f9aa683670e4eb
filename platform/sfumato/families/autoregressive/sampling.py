"""The sampling options of the family."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from sfumato.core.config import Config


class SamplingConfig(Config):
    """How images are drawn; `sfumato sample` may change any of it."""

    temperature: float = Field(1.0, gt=0, description="Divides the logits: below 1 draws likelier values.")
    top_k: int = Field(0, ge=0, description="Draw only from this many likeliest values; 0 means all of them.")
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Draw only from the fewest likeliest values that together are as probable as this.",
    )
    min_p: float = Field(
        0.0, ge=0, le=1, description="Draw only values at least this fraction as likely as the likeliest."
    )
    guidance: float = Field(
        1.0, ge=0, description="Classifier-free guidance weight of the transformer; 1 is the plain model."
    )
    guidance_schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="Whether the weight is the same for all codes, or rises from 1 to its value."
    )
    decoding: Literal["cache", "plain", "jacobi", "speculative"] = Field(
        "cache",
        description="How a transformer draws codes: one at a time with or without a cache, all at once until "
        "none changes, or with a draft (model.draft). All but rejection give the same images.",
    )
    cache: Literal["static", "paged"] = Field(
        "static",
        exclude_if=lambda value: value == "static",
        description="Where decoding=cache and speculative keep keys and values: in room for all codes of all "
        "rows, or in pages that rows take as they need them and give back. The images are the same.",
    )
    draft_length: int = Field(4, ge=1, description="Codes that the draft proposes at a time.")
    speculation: Literal["shared", "rejection"] = Field(
        "shared",
        description="How proposals are judged: equal to what the model draws from the same random number, or "
        "by rejection (Leviathan et al. 2023), which accepts more of them.",
    )
    keep: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the image given as the condition `prefix` that is kept, in raster order; the "
        "rest is drawn. 0.5 completes an upper half.",
    )
    steps: int = Field(8, ge=1, description="Rounds in which MaskGIT fills in its codes.")
    choice_temperature: float = Field(
        4.5, ge=0, description="Noise in MaskGIT's choice of codes to keep, which falls to 0 over the rounds."
    )

    @property
    def limits(self) -> dict[str, Any]:
        """What `draws.draw` takes."""
        names = ("temperature", "top_k", "top_p", "min_p")
        return {name: getattr(self, name) for name in names}

    @property
    def remembers(self) -> bool:
        """Whether codes are drawn with keys and values of earlier ones."""
        return self.decoding in ("cache", "speculative")

    @property
    def limited(self) -> bool:
        """Whether the probabilities are changed."""
        return self.limits != SamplingConfig().limits

"""DiT: a transformer on image patches with adaptive layer norm (Peebles & Xie 2023, "adaLN-Zero").

The image is cut into patches, each patch becomes a token with a fixed sine-cosine position, and every block
is scaled, shifted and gated by the sum of time and class embedding. Gates start at zero, so that a fresh
block is the identity and a fresh network answers zero.

B batch, T tokens, D width, P patch side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from sfumato.core.batch import DataSpec
from sfumato.core.config import Config

if TYPE_CHECKING:
    from sfumato.families.diffusion.networks.dit_model import DiT


class DiTConfig(Config):
    """A diffusion transformer (Peebles & Xie 2023)."""

    kind: Literal["dit"] = Field(..., description="Selects the transformer.")
    patch: int = Field(2, ge=1, description="Side of a patch in pixels; a patch is a token.")
    width: int = Field(128, ge=4, description="Channels of a token.")
    depth: int = Field(6, ge=1, description="Transformer blocks.")
    heads: int = Field(4, ge=1, description="Attention heads.")
    mlp_ratio: float = Field(4.0, gt=0, description="Width of a block's hidden layer against `width`.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.width % 4:
            near = max(4, round(self.width / 4) * 4)
            raise ValueError(
                f"width: {self.width} is no multiple of 4, which two-dimensional positions need; "
                f"the nearest is {near}"
            )
        if self.width % self.heads:
            near = min(
                (d for d in range(1, self.width + 1) if self.width % d == 0),
                key=lambda d: abs(d - self.heads),
            )
            raise ValueError(f"heads: {self.heads} does not divide width={self.width}; the nearest is {near}")
        return self

    def build(self, data: DataSpec, *, conditional: bool) -> DiT:
        """The network, with weights drawn from torch's global generator."""
        from sfumato.families.diffusion.networks.dit_model import DiT

        return DiT(self, data, conditional=conditional)

    def problems(self, data: DataSpec, what: str = "image") -> list[str]:
        """Sides of the `what` that the patches do not tile, one line each."""
        return [
            f"model.network.patch: {self.patch} does not divide the {what} {name} of {side}; use a {name} of "
            f"{max(1, round(side / self.patch)) * self.patch}, or a patch of {self._nearest_patch(side)}"
            for name, side in (("height", data.height), ("width", data.width))
            if side % self.patch
        ]

    def _nearest_patch(self, side: int) -> int:
        return min((p for p in range(1, side + 1) if side % p == 0), key=lambda p: abs(p - self.patch))

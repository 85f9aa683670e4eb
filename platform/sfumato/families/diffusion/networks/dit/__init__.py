"""DiT: a transformer on image patches with adaptive layer norm (Peebles & Xie 2023, "adaLN-Zero").

The image is cut into patches, each patch becomes a token with a fixed sine-cosine position, and every block
is scaled, shifted and gated by the sum of time and class embedding. Gates start at zero, so that a fresh
block is the identity and a fresh network answers zero.

Later changes are options: `qk_norm` (Henry et al. 2020; Dehghani et al. 2023), `rope` (Su et al. 2021), `mlp:
swiglu` (Shazeer 2020) and `norm: rms` (Zhang & Sennrich 2019) make LightningDiT (Yao et al. 2025) of it;
`registers` are those of Darcet et al. 2024; `bottleneck` is the patch embedding of JiT (Li & He 2025), which
takes large patches of pixels.

Departures from the authors' code: attention is torch's fused kernel, and the class dropout is the loss's
business, so that its randomness is the loss's too.

- `network.py`: tokens, conditions, blocks, and back to an image.
- `blocks.py`: the blocks, their normalisation and modulation.
- `routing.py`: tokens that pass by the middle blocks.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import nn

from sfumato.core.batch import DataSpec
from sfumato.families.diffusion.layers.patches import tiling_problems
from sfumato.families.diffusion.networks import NetworkConfig, Told
from sfumato.families.diffusion.networks.dit.blocks import Mlp, Norm


class DiTConfig(NetworkConfig):
    """A diffusion transformer (Peebles & Xie 2023)."""

    takes_spans: ClassVar[bool] = True
    kind: Literal["dit"] = Field("dit", description="Selects the transformer.")
    patch: int = Field(2, ge=1, description="Side of a patch in pixels; a patch is a token.")
    width: int = Field(128, ge=4, description="Channels of a token.")
    depth: int = Field(6, ge=1, description="Transformer blocks.")
    heads: int = Field(4, ge=1, description="Attention heads.")
    mlp_ratio: float = Field(
        4.0,
        gt=0,
        description="Width of a block's hidden layer against `width`; with swiglu, which has three "
        "matrices instead of two, of two thirds of it.",
    )
    mlp: Mlp = Field("gelu", description="Hidden layer of a block: GELU, or gated SiLU.")
    norm: Norm = Field(
        "layer", description="Before modulation: layer norm without weights, or RMSNorm with its own."
    )
    qk_norm: bool = Field(
        False, description="RMSNorm of each head's queries and keys, which keeps large models stable."
    )
    rope: bool = Field(
        False, description="Turn queries and keys by their row and column, beside the fixed positions."
    )
    registers: int = Field(
        0, ge=0, description="Learned tokens beside those of the image, which attention may use as memory."
    )
    route: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the tokens that pass by the blocks of `route_blocks` in training (TREAD: 0.5); "
        "for objectives that call the network once a step.",
    )
    route_blocks: tuple[int, int] | None = Field(
        None,
        description="After which block they leave and join again; null: after the second and before the last "
        "four, as in TREAD.",
    )
    bottleneck: int | None = Field(
        None,
        ge=1,
        description="Embed patches by way of so many channels, fewer than a large patch has values; null: "
        "directly.",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.width % 4:
            near = max(4, round(self.width / 4) * 4)
            raise ValueError(
                f"width: {self.width} is not a multiple of 4, which two-dimensional positions need; "
                f"the nearest is {near}"
            )
        if self.width % self.heads:
            near = min(
                (d for d in range(1, self.width + 1) if self.width % d == 0),
                key=lambda d: abs(d - self.heads),
            )
            raise ValueError(f"heads: {self.heads} does not divide width={self.width}; the nearest is {near}")
        if self.route and not 0 <= self.routed[0] < self.routed[1] <= self.depth:
            first, last = self.routed
            raise ValueError(
                f"route_blocks: tokens leave after block {first} and join after {last} of {self.depth}; "
                f"give two that rise, as [0, {self.depth}]"
            )
        if self.rope and self.width // self.heads % 4:
            raise ValueError(
                f"rope: turns groups of 4 channels, and heads of {self.width // self.heads} are no multiple; "
                f"set heads={self.width // 4}, or a divisor of it"
            )
        return self

    def build(
        self,
        data: DataSpec,
        *,
        conditional: bool,
        outputs: int = 1,
        spans: bool = False,
        told: Told | None = None,
    ) -> nn.Module:
        """The network, with weights drawn from torch's global generator."""
        from sfumato.families.diffusion.networks.dit.network import DiT  # which is given this configuration

        return DiT(self, data, conditional=conditional, outputs=outputs, spans=spans, told=told)

    @property
    def routed(self) -> tuple[int, int]:
        """The blocks after which tokens leave and join again."""
        return (2, self.depth - 4) if self.route_blocks is None else self.route_blocks

    def blocks_of_tokens(self) -> int:
        """Its depth, or the blocks that all tokens pass before some leave."""
        return self.routed[0] if self.route else self.depth

    def couples_rows(self) -> bool:
        """Routes are drawn for a whole micro-batch at once."""
        return self.route > 0

    @classmethod
    def tiny(cls) -> Self:
        """Two blocks of 16 channels."""
        return cls(patch=2, width=16, depth=2, heads=2)

    def middle(self) -> tuple[str, int]:
        """The block in the middle."""
        return f"blocks.{self.depth // 2}", self.width

    def problems(self, data: DataSpec, what: str = "image") -> list[str]:
        """Sides of the `what` that the patches do not tile, one line each."""
        return tiling_problems(self.patch, data, what)


COMPONENT = DiTConfig

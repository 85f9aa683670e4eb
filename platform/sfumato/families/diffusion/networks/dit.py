"""DiT: a transformer on image patches with adaptive layer norm (Peebles & Xie 2023, "adaLN-Zero").

The image is cut into patches, each patch becomes a token with a fixed sine-cosine position, and every block
is scaled, shifted and gated by the sum of time and class embedding. Gates start at zero, so that a fresh
block is the identity and a fresh network answers zero.

B batch, T tokens, D width, P patch side.

Later changes are options: `qk_norm` (Henry et al. 2020; Dehghani et al. 2023), `rope` (Su et al. 2021), `mlp:
swiglu` (Shazeer 2020) and `norm: rms` (Zhang & Sennrich 2019) make LightningDiT (Yao et al. 2025) of it;
`registers` are those of Darcet et al. 2024; `bottleneck` is the patch embedding of JiT (Li & He 2025), which
takes large patches of pixels.

Departures from the authors' code: attention is torch's fused kernel, and the class dropout is the loss's
business, so that its randomness is the loss's too.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.families.diffusion.dit_blocks import DiTBlock, LastLayer, Mlp, Norm, projector
from sfumato.families.diffusion.networks import NetworkConfig, Told
from sfumato.families.diffusion.routing import Route
from sfumato.families.diffusion.time_embedding import MAX_PERIOD, sinusoids
from sfumato.layers.rope import grid_angles

FREQUENCIES = 256


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
    ) -> DiT:
        """The network, with weights drawn from torch's global generator."""
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


def tiling_problems(patch: int, data: DataSpec, what: str) -> list[str]:
    """Sides of the `what` (image, latent) that patches do not tile, one line each."""

    def nearest(side: int) -> int:
        return min((p for p in range(1, side + 1) if side % p == 0), key=lambda p: abs(p - patch))

    return [
        f"model.network.patch: {patch} does not divide the {what} {name} of {side}; use a {name} of "
        f"{max(1, round(side / patch)) * patch}, or a patch of {nearest(side)}"
        for name, side in (("height", data.height), ("width", data.width))
        if side % patch
    ]


class DiT(nn.Module):
    """Called like diffusers' `UNet2DModel`: (x_BCHW, t, label_B, return_dict=False) -> (output_BCHW,).

    The last class embedding, index `data.num_classes`, stands for no class (Ho & Salimans 2022).
    """

    angles_TP: Tensor | None

    def __init__(
        self,
        config: DiTConfig,
        data: DataSpec,
        *,
        conditional: bool,
        outputs: int = 1,
        spans: bool = False,
        told: Told | None = None,
    ) -> None:
        super().__init__()
        width, patch = config.width, config.patch
        self._patch = patch
        self._grid = (data.height // patch, data.width // patch)
        self.embed_patch = _patches(data.channels, width, patch, config.bottleneck)
        self.embed_time = embedding(width)
        self.embed_span = embedding(width) if spans else None
        self.embed_label = nn.Embedding(data.num_classes + 1, width) if conditional else None
        self.registers_RD = nn.Parameter(torch.zeros(config.registers, width)) if config.registers else None
        self.blocks = nn.ModuleList(
            DiTBlock(
                width,
                config.heads,
                config.mlp_ratio,
                mlp=config.mlp,
                norm=config.norm,
                qk_norm=config.qk_norm,
            )
            for _ in range(config.depth)
        )
        self.last = LastLayer(width, patch * patch * data.channels * outputs, norm=config.norm)
        self._route, self._routed = config.route, config.routed
        self._told_after = 0 if told is None else told.depth
        self.projector = None if told is None else projector(width, told.hidden, told.channels)
        # Fixed, so that weights of another size of image differ in nothing but this.
        self.register_buffer("position_TD", positions(*self._grid, width), persistent=False)
        angles_TP = None
        if config.rope:
            angles_TP = grid_angles(*self._grid, width // config.heads, first=config.registers)
        self.register_buffer("angles_TP", angles_TP, persistent=False)
        self._initialise()

    def forward(
        self,
        x_BCHW: Tensor,
        t: Tensor,
        label_B: Tensor | None = None,
        return_dict: bool = False,
        span: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """`t` is a scalar or [B], of any float range and on any device (diffusers' schedulers keep their
        timesteps on the CPU), and so is `span`, for a network built with spans; the output has the shape of
        `x_BCHW`, but `outputs` times its channels. In training, what is to be told follows, [B, T, E]."""
        tokens_BTD = self.embed_patch(x_BCHW).flatten(2).transpose(1, 2) + self.position_TD
        condition_BD = self.embed_time(
            sinusoids(t.to(x_BCHW.device).float().expand(len(x_BCHW)), FREQUENCIES)
        )
        if self.embed_span is not None:
            assert span is not None, "a network with spans needs them"
            condition_BD = condition_BD + self.embed_span(
                sinusoids(span.to(x_BCHW.device).float().expand(len(x_BCHW)), FREQUENCIES)
            )
        if self.embed_label is not None:
            assert label_B is not None, "a class-conditional network needs labels"
            condition_BD = condition_BD + self.embed_label(label_B)
        condition_BD = F.silu(condition_BD)
        extra = 0
        if self.registers_RD is not None:
            extra = len(self.registers_RD)
            registers_BRD = self.registers_RD.expand(len(x_BCHW), -1, -1).to(tokens_BTD.dtype)
            tokens_BTD = torch.cat([registers_BRD, tokens_BTD], dim=1)
        tokens_BTD, told = self._through(tokens_BTD, condition_BD, extra)
        image_BCHW = unpatch(self.last(tokens_BTD[:, extra:], condition_BD), *self._grid, self._patch)
        return image_BCHW, *told

    def _through(
        self, tokens_BTD: Tensor, condition_BD: Tensor, extra: int
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The tokens after all blocks, and what is told on the way."""
        told: tuple[Tensor, ...] = ()
        route, all_BTD, angles = None, tokens_BTD, self.angles_TP
        for number, block in enumerate(self.blocks):
            if self.training and self._route and number == self._routed[0]:
                rows, tokens = tokens_BTD.shape[:2]
                route = Route.draw(rows, tokens, self._route, tokens_BTD.device, always=extra)
                all_BTD, tokens_BTD = tokens_BTD, route.leave(tokens_BTD)
                angles = route.angles(self.angles_TP)
            tokens_BTD = block(tokens_BTD, condition_BD, angles)
            if route is not None and number + 1 == self._routed[1]:
                tokens_BTD, angles, route = route.join(all_BTD, tokens_BTD), self.angles_TP, None
            if self.projector is not None and self.training and number + 1 == self._told_after:
                told = (self.projector(tokens_BTD[:, extra:]),)
        return tokens_BTD, told

    def _initialise(self) -> None:
        """The authors' initialisation: Xavier in linear layers, small embeddings, zero gates."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        self.embed_patch.apply(_initialise_patches)
        if self.registers_RD is not None:
            nn.init.normal_(self.registers_RD, std=0.02)
        for layer in [*self.embed_time, *(self.embed_span or ())]:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
        if self.embed_label is not None:
            nn.init.normal_(self.embed_label.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, (DiTBlock, LastLayer)):
                nn.init.zeros_(module.modulation.weight)
        nn.init.zeros_(self.last.out.weight)


def embedding(width: int) -> nn.Sequential:
    """From sinusoids of a time to tokens' width."""
    return nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))


def _patches(channels: int, width: int, patch: int, bottleneck: int | None) -> nn.Module:
    """[B, C, H, W] to [B, D, H / P, W / P]."""
    if bottleneck is None:
        return nn.Conv2d(channels, width, patch, stride=patch)
    return nn.Sequential(
        nn.Conv2d(channels, bottleneck, patch, stride=patch, bias=False), nn.Conv2d(bottleneck, width, 1)
    )


def unpatch(tokens_BTE: Tensor, rows: int, columns: int, patch: int) -> Tensor:
    """Tokens in row-major order, each of P * P * C values ordered (row, column, channel), as [B, C, H, W]."""
    cut_BRCPPE = tokens_BTE.view(len(tokens_BTE), rows, columns, patch, patch, -1)
    return cut_BRCPPE.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def positions(rows: int, columns: int, width: int) -> Tensor:
    """Fixed positions [T, D] in row-major order: the column in the first half of D, the row in the second.

    Each half holds sine, then cosine, of the coordinate times 10000^(-4 i / D), as the authors' code has it.
    """
    quarter = width // 4
    frequency = MAX_PERIOD ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    row, column = torch.meshgrid(
        torch.arange(rows, dtype=torch.float64), torch.arange(columns, dtype=torch.float64), indexing="ij"
    )
    parts = []
    for coordinate in (column, row):
        angle = coordinate.flatten()[:, None] * frequency
        parts += [angle.sin(), angle.cos()]
    return torch.cat(parts, dim=1).float()


def _initialise_patches(layer: nn.Module) -> None:
    """A convolution as a linear layer of the patch's values."""
    if not isinstance(layer, nn.Conv2d):
        return
    nn.init.xavier_uniform_(layer.weight.view(layer.weight.shape[0], -1))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


COMPONENT = DiTConfig

"""DiT: a transformer on image patches with adaptive layer norm (Peebles & Xie 2023, "adaLN-Zero").

The image is cut into patches, each patch becomes a token with a fixed sine-cosine position, and every block
is scaled, shifted and gated by the sum of time and class embedding. Gates start at zero, so that a fresh
block is the identity and a fresh network answers zero.

B batch, T tokens, D width, P patch side.

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
from sfumato.families.diffusion.networks import NetworkConfig
from sfumato.families.diffusion.time_embedding import MAX_PERIOD, sinusoids

FREQUENCIES = 256


class DiTConfig(NetworkConfig):
    """A diffusion transformer (Peebles & Xie 2023)."""

    takes_spans: ClassVar[bool] = True
    kind: Literal["dit"] = Field("dit", description="Selects the transformer.")
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
                f"width: {self.width} is not a multiple of 4, which two-dimensional positions need; "
                f"the nearest is {near}"
            )
        if self.width % self.heads:
            near = min(
                (d for d in range(1, self.width + 1) if self.width % d == 0),
                key=lambda d: abs(d - self.heads),
            )
            raise ValueError(f"heads: {self.heads} does not divide width={self.width}; the nearest is {near}")
        return self

    def build(self, data: DataSpec, *, conditional: bool, outputs: int = 1, spans: bool = False) -> DiT:
        """The network, with weights drawn from torch's global generator."""
        return DiT(self, data, conditional=conditional, outputs=outputs, spans=spans)

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

    def __init__(
        self,
        config: DiTConfig,
        data: DataSpec,
        *,
        conditional: bool,
        outputs: int = 1,
        spans: bool = False,
    ) -> None:
        super().__init__()
        width, patch = config.width, config.patch
        self._patch = patch
        self._grid = (data.height // patch, data.width // patch)
        self.embed_patch = nn.Conv2d(data.channels, width, patch, stride=patch)
        self.embed_time = embedding(width)
        self.embed_span = embedding(width) if spans else None
        self.embed_label = nn.Embedding(data.num_classes + 1, width) if conditional else None
        self.blocks = nn.ModuleList(
            DiTBlock(width, config.heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.last = LastLayer(width, patch * patch * data.channels * outputs)
        # Fixed, so that weights of another size of image differ in nothing but this.
        self.register_buffer("position_TD", positions(*self._grid, width), persistent=False)
        self._initialise()

    def forward(
        self,
        x_BCHW: Tensor,
        t: Tensor,
        label_B: Tensor | None = None,
        return_dict: bool = False,
        span: Tensor | None = None,
    ) -> tuple[Tensor]:
        """`t` is a scalar or [B], of any float range and on any device (diffusers' schedulers keep their
        timesteps on the CPU), and so is `span`, for a network built with spans; the output has the shape of
        `x_BCHW`, but `outputs` times its channels."""
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
        for block in self.blocks:
            tokens_BTD = block(tokens_BTD, condition_BD)
        return (unpatch(self.last(tokens_BTD, condition_BD), *self._grid, self._patch),)

    def _initialise(self) -> None:
        """The authors' initialisation: Xavier in linear layers, small embeddings, zero gates."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.embed_patch.weight.view(self.embed_patch.weight.shape[0], -1))
        nn.init.zeros_(_bias(self.embed_patch))
        for layer in [*self.embed_time, *(self.embed_span or ())]:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
        if self.embed_label is not None:
            nn.init.normal_(self.embed_label.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, (DiTBlock, LastLayer)):
                nn.init.zeros_(module.modulation.weight)
        nn.init.zeros_(self.last.out.weight)


class DiTBlock(nn.Module):
    """Self-attention and MLP, each normalised, modulated and gated by the condition: adaLN-Zero."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self._heads = heads
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU("tanh"), nn.Linear(hidden, width))

    def forward(self, x_BTD: Tensor, condition_BD: Tensor) -> Tensor:
        """Tokens of the same shape."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (
            self.modulation(condition_BD).unsqueeze(1).chunk(6, dim=-1)
        )
        x_BTD = x_BTD + gate_a * self._attend(modulate(x_BTD, shift_a, scale_a))
        return x_BTD + gate_m * self.mlp(modulate(x_BTD, shift_m, scale_m))  # type: ignore[no-any-return]

    def _attend(self, x_BTD: Tensor) -> Tensor:
        q, k, v = self.qkv(x_BTD).unflatten(-1, (3, self._heads, -1)).permute(2, 0, 3, 1, 4)
        mixed_BHTE = F.scaled_dot_product_attention(q, k, v)
        return self.project(mixed_BHTE.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class LastLayer(nn.Module):
    """Tokens to patches: normalised and modulated, then linear from zero."""

    def __init__(self, width: int, values: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, values)

    def forward(self, x_BTD: Tensor, condition_BD: Tensor) -> Tensor:
        """[B, T, P * P * C]."""
        shift, scale = self.modulation(condition_BD).unsqueeze(1).chunk(2, dim=-1)
        return self.out(modulate(x_BTD, shift, scale))  # type: ignore[no-any-return]


def embedding(width: int) -> nn.Sequential:
    """From sinusoids of a time to tokens' width."""
    return nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))


def modulate(x_BTD: Tensor, shift_B1D: Tensor, scale_B1D: Tensor) -> Tensor:
    """Layer norm without its own weights, then scale and shift from the condition."""
    return F.layer_norm(x_BTD, x_BTD.shape[-1:], eps=1e-6) * (1 + scale_B1D) + shift_B1D


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


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias


COMPONENT = DiTConfig

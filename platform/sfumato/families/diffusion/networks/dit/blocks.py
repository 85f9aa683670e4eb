"""The blocks of DiT (Peebles & Xie 2023) and their later options.

B batch, T tokens, D width, E channels of a head, P pairs of them, H heads.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.families.diffusion.networks import Told
from sfumato.layers.rope import turned

EPS = 1e-6
Mlp = Literal["gelu", "swiglu"]
Norm = Literal["layer", "rms"]


class DiTBlock(nn.Module):
    """Self-attention and MLP, each normalised, modulated and gated by the condition: adaLN-Zero."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float,
        *,
        mlp: Mlp = "gelu",
        norm: Norm = "layer",
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        self._heads = heads
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.mlp = hidden_layer(mlp, width, int(width * mlp_ratio))
        self.norm_a, self.norm_m = normalisation(norm, width), normalisation(norm, width)
        self.norm_q = nn.RMSNorm(width // heads, eps=EPS) if qk_norm else None
        self.norm_k = nn.RMSNorm(width // heads, eps=EPS) if qk_norm else None

    def forward(self, x_BTD: Tensor, condition_BD: Tensor, angles_TP: Tensor | None = None) -> Tensor:
        """Tokens of the same shape. `angles_TP` turns queries and keys (`layers.rope`)."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (
            self.modulation(condition_BD).unsqueeze(1).chunk(6, dim=-1)
        )
        x_BTD = x_BTD + gate_a * self._attend(modulate(self.norm_a(x_BTD), shift_a, scale_a), angles_TP)
        return x_BTD + gate_m * self.mlp(modulate(self.norm_m(x_BTD), shift_m, scale_m))  # type: ignore[no-any-return]

    def _attend(self, x_BTD: Tensor, angles_TP: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x_BTD).unflatten(-1, (3, self._heads, -1)).permute(2, 0, 3, 1, 4)
        if self.norm_q is not None and self.norm_k is not None:
            q, k = self.norm_q(q).to(v.dtype), self.norm_k(k).to(v.dtype)
        if angles_TP is not None:
            q, k = turned(q, angles_TP), turned(k, angles_TP)
        mixed_BHTE = F.scaled_dot_product_attention(q, k, v)
        return self.project(mixed_BHTE.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class LastLayer(nn.Module):
    """Tokens to patches: normalised and modulated, then linear from zero."""

    def __init__(self, width: int, values: int, *, norm: Norm = "layer") -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 2 * width)
        self.norm = normalisation(norm, width)
        self.out = nn.Linear(width, values)

    def forward(self, x_BTD: Tensor, condition_BD: Tensor) -> Tensor:
        """[B, T, P * P * C]."""
        shift, scale = self.modulation(condition_BD).unsqueeze(1).chunk(2, dim=-1)
        return self.out(modulate(self.norm(x_BTD), shift, scale))  # type: ignore[no-any-return]


def modulate(x_BTD: Tensor, shift_B1D: Tensor, scale_B1D: Tensor) -> Tensor:
    """Scale and shift, from the condition, of what has been normalised."""
    return x_BTD * (1 + scale_B1D) + shift_B1D


def normalisation(norm: Norm, width: int) -> nn.Module:
    """Layer norm without weights of its own, or RMSNorm with them."""
    if norm == "rms":
        return nn.RMSNorm(width, eps=EPS)
    return nn.LayerNorm(width, eps=EPS, elementwise_affine=False)


def hidden_layer(mlp: Mlp, width: int, hidden: int) -> nn.Module:
    """[..., D] to [..., D]."""
    if mlp == "swiglu":
        return SwiGLU(width, int(2 * hidden / 3))
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU("tanh"), nn.Linear(hidden, width))


class SwiGLU(nn.Module):
    """W (SiLU(U x) * V x), with biases as LightningDiT has them (Shazeer 2020, eq. 6)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.both = nn.Linear(width, 2 * hidden)
        self.out = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        gate, value = self.both(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value)  # type: ignore[no-any-return]


def projector(told: Told, width: int, grid: tuple[int, int]) -> nn.Module:
    """REPA's, three linear layers with SiLU between them, or iREPA's convolution."""
    if told.convolution:
        return TokenConvolution(width, told.channels, grid)
    hidden = told.hidden
    return nn.Sequential(
        nn.Linear(width, hidden),
        nn.SiLU(),
        nn.Linear(hidden, hidden),
        nn.SiLU(),
        nn.Linear(hidden, told.channels),
    )


class TokenConvolution(nn.Module):
    """A convolution of 3x3 tokens on their grid: [B, T, inputs] to [B, T, outputs]."""

    def __init__(self, inputs: int, outputs: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self._grid = grid

    def forward(self, tokens_BTD: Tensor) -> Tensor:
        rows, _, width = tokens_BTD.shape
        map_BDhw = tokens_BTD.transpose(1, 2).reshape(rows, width, *self._grid)
        out_BTE: Tensor = self.conv(map_BDhw).flatten(2).transpose(1, 2)
        return out_BTE

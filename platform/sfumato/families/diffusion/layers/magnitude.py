"""Layers that keep the magnitude of activations (Karras et al. 2024, "EDM2", section 2 and appendix B).

Each maps inputs of unit variance to outputs of unit variance, as long as they are uncorrelated. Weights count
by their direction only: a row is scaled to unit variance whenever it is used. Training has to keep it so
(forced weight normalisation, `optimizer.unit_rows`), or learning rates would decay as rows grow.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPS = 1e-4
SILU = 0.596
"""The root mean square of SiLU of a normal variable."""


def normalised(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """x with root mean square 1 over these dimensions (eq. 30: eps is added to the norm)."""
    norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=torch.float32)
    size: Tensor = _EPS + norm * math.sqrt(norm.numel() / x.numel())
    return x / size.to(x.dtype)


def silu(x: Tensor) -> Tensor:
    """SiLU at unit magnitude (eq. 81)."""
    return F.silu(x) / SILU


def mixed(a: Tensor, b: Tensor, share: float) -> Tensor:
    """(1 - share) a + share b at unit magnitude (eq. 88)."""
    return a.lerp(b, share) / math.hypot(1 - share, share)


def joined(a_BCHW: Tensor, b_BCHW: Tensor, share: float) -> Tensor:
    """Both one after the other, `b` with this share of the magnitude (eq. 103)."""
    a, b = a_BCHW.shape[1], b_BCHW.shape[1]
    whole = math.sqrt((a + b) / ((1 - share) ** 2 + share**2))
    return torch.cat(
        [whole / math.sqrt(a) * (1 - share) * a_BCHW, whole / math.sqrt(b) * share * b_BCHW], dim=1
    )


class Waves(nn.Module):
    """A number [B] as random waves [B, n] of unit magnitude (eq. 75)."""

    frequencies: Tensor
    phases: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", 2 * math.pi * torch.randn(size))
        self.register_buffer("phases", 2 * math.pi * torch.rand(size))

    def forward(self, t_B: Tensor) -> Tensor:
        """sqrt(2) cos(2 pi (f t + phi))."""
        return (t_B.float()[:, None] * self.frequencies + self.phases).cos() * math.sqrt(2)


class Weights(nn.Module):
    """A linear layer (kernel 0) or a convolution (odd kernel) by the direction of its rows (eq. 47)."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 0) -> None:
        super().__init__()
        shape = (outputs, inputs) if kernel == 0 else (outputs, inputs, kernel, kernel)
        self.weight = nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """[B, inputs] to [B, outputs], or [B, inputs, H, W] to [B, outputs, H, W]; `gain` multiplies it."""
        rows = normalised(self.weight, tuple(range(1, self.weight.dim())))
        rows = rows * (gain / math.sqrt(self.weight[0].numel()))
        if rows.dim() == 2:
            return F.linear(x, rows.to(x.dtype))
        return F.conv2d(x, rows.to(x.dtype), padding=rows.shape[-1] // 2)


class Block(nn.Module):
    """A residual block of EDM2's encoder or decoder, with attention if it has heads (figure 21)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        *,
        decodes: bool = False,
        side: str = "keep",
        head_dim: int | None = None,
        balance: float = 0.3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self._decodes, self._side, self._balance, self._dropout = decodes, side, balance, dropout
        self._heads = 0 if head_dim is None else outputs // head_dim
        self.gain = nn.Parameter(torch.zeros(1))
        self.first = Weights(inputs if decodes else outputs, outputs, 3)
        self.embed = Weights(embedding, outputs)
        self.second = Weights(outputs, outputs, 3)
        self.skip = Weights(inputs, outputs, 1) if inputs != outputs else None
        self.qkv = Weights(outputs, 3 * outputs, 1) if self._heads else None
        self.project = Weights(outputs, outputs, 1) if self._heads else None

    def forward(self, x_BCHW: Tensor, embedding_BD: Tensor) -> Tensor:
        """[B, outputs, h, w]."""
        x = _resampled(x_BCHW, self._side)
        if not self._decodes:
            x = normalised(x if self.skip is None else self.skip(x), (1,))
        scale_BC11 = (self.embed(embedding_BD, self.gain) + 1)[:, :, None, None].to(x.dtype)
        y = silu(self.first(silu(x)) * scale_BC11)
        y = self.second(F.dropout(y, self._dropout, self.training))
        if self._decodes and self.skip is not None:
            x = self.skip(x)
        x = mixed(x, y, self._balance)
        if self.qkv is not None and self.project is not None:
            x = mixed(x, self.project(self._attended(self.qkv(x))), self._balance)
        return x.clamp(-256, 256)

    def _attended(self, qkv_BCHW: Tensor) -> Tensor:
        """Cosine attention: queries, keys and values of unit magnitude."""
        rows, _, height, width = qkv_BCHW.shape
        parts: Any = normalised(qkv_BCHW.reshape(rows, self._heads, -1, 3, height * width), (2,))
        q, k, v = (part.transpose(2, 3) for part in parts.unbind(3))
        mixed_BHTE = F.scaled_dot_product_attention(q, k, v)
        return mixed_BHTE.transpose(2, 3).reshape(rows, -1, height, width)


def _resampled(x_BCHW: Tensor, side: str) -> Tensor:
    if side == "down":
        return F.avg_pool2d(x_BCHW, 2)
    return F.interpolate(x_BCHW, scale_factor=2, mode="nearest") if side == "up" else x_BCHW

"""One map of TarFlow: a causal transformer scales and shifts every token by those before it.

    z_t = (x_t - m(x_<t)) exp(-a(x_<t))         Zhai et al. 2024, "Normalizing flows are capable generative
    x_t = z_t exp(a(x_<t)) + m(x_<t)            models", eq. 4 to 6; the first token stays as it is

All z are found in one pass. The inverse goes token by token, with a cache of keys and values; or it starts
from z and applies the second line to all tokens at once until none changes, at most once for each token: a
token is right as soon as those before it are (Song et al. 2021, "Accelerating feedforward computation via
parallel nonlinear equation solving").
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.families.flow.bijection import Bijection, Decoding

Cache = tuple[Tensor, Tensor]
"""Keys and values of the tokens so far, [B, heads, t, D / heads] each."""
SETTLED = 1e-6
"""A token that moves less than this, relative to its size, no longer changes."""


class CausalBlock(nn.Module):
    """Pre-norm attention and MLP, a token seeing itself and those before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x_BTD: Tensor, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """The next features and the cache with these tokens; with a cache, T is 1."""
        qkv = self.qkv(self.norm_attention(x_BTD)).unflatten(2, (3, self._heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if cache is not None:
            k, v = torch.cat([cache[0], k], dim=2), torch.cat([cache[1], v], dim=2)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=cache is None)
        x_BTD = x_BTD + self.out(mixed.transpose(1, 2).flatten(2))
        return x_BTD + self.mlp(self.norm_mlp(x_BTD)), (k, v)


class CausalMap(Bijection):
    """A map of images [B, C, h, w], whose pixels are tokens of C values in raster order, or in reverse.

    `classes` counts those of the data and one more for none; 0 without classes.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        *,
        width: int,
        layers: int,
        heads: int,
        backwards: bool,
    ) -> None:
        super().__init__()
        channels, height, row = shape
        self._backwards, self._none = backwards, classes - 1
        self.into = nn.Linear(channels, width)
        self.positions = nn.Parameter(0.01 * torch.randn(height * row, width))
        self.classes = nn.Embedding(classes, width) if classes else None
        self.blocks = nn.ModuleList(CausalBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, 2 * channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        if self.classes is not None:
            nn.init.normal_(self.classes.weight, std=0.01)

    def forward(self, x_BCHW: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
        x_BTC = self._tokens(x_BCHW)
        shift_BTC, log_scale_BTC = self._given(x_BTC, label_B)
        z_BTC = (x_BTC - shift_BTC) * (-log_scale_BTC).exp()
        return self._image(z_BTC, x_BCHW), -log_scale_BTC.float().sum((1, 2))

    def inverse(self, y_BCHW: Tensor, label_B: Tensor) -> Tensor:
        return self.decode(y_BCHW, label_B, Decoding())

    def decode(self, y_BCHW: Tensor, label_B: Tensor, decoding: Decoding) -> Tensor:
        """The inverse, guided away from that of no class where the weight is not 1."""
        z_BTC = self._tokens(y_BCHW)
        guided = self.classes is not None and decoding.guidance != 1
        if guided:
            label_B = torch.cat([label_B, torch.full_like(label_B, self._none)])
        weight_T1 = _weights(z_BTC.shape[1], decoding, z_BTC.device) if guided else None
        by_order = {"cache": self._cached, "sequential": self._sequential, "jacobi": self._jacobi}
        return self._image(by_order[decoding.order](z_BTC, label_B, weight_T1), y_BCHW)

    def _given(self, x_BTC: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
        """m and a of every token, from those before it; zero for the first."""
        out_BTC, _ = self._features(x_BTC[:, :-1], label_B, None)
        shift_BTC, log_scale_BTC = F.pad(out_BTC, (0, 0, 1, 0)).chunk(2, dim=2)
        return shift_BTC, log_scale_BTC

    def _features(
        self, x_BTC: Tensor, label_B: Tensor, caches: list[Cache] | None, first: int = 0
    ) -> tuple[Tensor, list[Cache]]:
        """What the tokens from number `first` on say of the next ones, and the caches with them."""
        h_BTD = self.into(x_BTC) + self.positions[first : first + x_BTC.shape[1]]
        if self.classes is not None:
            h_BTD = h_BTD + self.classes(label_B)[:, None]
        found = []
        for index, block in enumerate(self.blocks):
            h_BTD, cache = block(h_BTD, None if caches is None else caches[index])
            found.append(cache)
        out_BTC: Tensor = self.out(self.norm(h_BTD))
        return out_BTC.to(torch.promote_types(out_BTC.dtype, torch.float32)), found

    def _cached(self, z_BTC: Tensor, label_B: Tensor, weight_T1: Tensor | None) -> Tensor:
        tokens, caches = [z_BTC[:, :1]], None
        for index in range(1, z_BTC.shape[1]):
            newest = _twice(tokens[-1], weight_T1)
            out, caches = self._features(newest, label_B, caches, index - 1)
            weight = None if weight_T1 is None else weight_T1[index : index + 1]
            tokens.append(_undo(z_BTC[:, index : index + 1], out, weight))
        return torch.cat(tokens, dim=1)

    def _sequential(self, z_BTC: Tensor, label_B: Tensor, weight_T1: Tensor | None) -> Tensor:
        x_BTC = z_BTC[:, :1]
        for index in range(1, z_BTC.shape[1]):
            out, _ = self._features(_twice(x_BTC, weight_T1), label_B, None)
            weight = None if weight_T1 is None else weight_T1[index : index + 1]
            x_BTC = torch.cat([x_BTC, _undo(z_BTC[:, index : index + 1], out[:, -1:], weight)], dim=1)
        return x_BTC

    def _jacobi(self, z_BTC: Tensor, label_B: Tensor, weight_T1: Tensor | None) -> Tensor:
        x_BTC = z_BTC
        weight = None if weight_T1 is None else weight_T1[1:]
        for _ in range(z_BTC.shape[1] - 1):
            out, _ = self._features(_twice(x_BTC[:, :-1], weight_T1), label_B, None)
            after = torch.cat([z_BTC[:, :1], _undo(z_BTC[:, 1:], out, weight)], dim=1)
            moved = (after - x_BTC).abs() > SETTLED * (1 + x_BTC.abs())
            x_BTC = after
            if not moved.any():
                break
        return x_BTC

    def _tokens(self, x_BCHW: Tensor) -> Tensor:
        x_BTC = x_BCHW.flatten(2).transpose(1, 2)
        return x_BTC.flip(1) if self._backwards else x_BTC

    def _image(self, x_BTC: Tensor, like_BCHW: Tensor) -> Tensor:
        x_BTC = x_BTC.flip(1) if self._backwards else x_BTC
        return x_BTC.transpose(1, 2).reshape(like_BCHW.shape)


def _weights(tokens: int, decoding: Decoding, device: torch.device) -> Tensor:
    """The guidance of every token, [T, 1]: constant, or rising from 1 at the first (ibid., sec. 3.4)."""
    share = torch.linspace(0, 1, tokens, device=device) if decoding.rising else torch.ones(1, device=device)
    return (1 + (decoding.guidance - 1) * share).expand(tokens)[:, None]


def _twice(x_BTC: Tensor, weight_T1: Tensor | None) -> Tensor:
    """Guided, the tokens are seen with the class and without."""
    return x_BTC if weight_T1 is None else torch.cat([x_BTC, x_BTC])


def _undo(z_BTC: Tensor, out_BTC: Tensor, weight_T1: Tensor | None) -> Tensor:
    if weight_T1 is not None:
        given, free = out_BTC.chunk(2)
        out_BTC = free + weight_T1 * (given - free)
    shift_BTC, log_scale_BTC = out_BTC.chunk(2, dim=2)
    return z_BTC * log_scale_BTC.exp() + shift_BTC

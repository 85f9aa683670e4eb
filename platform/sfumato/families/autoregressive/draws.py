"""Draws from logits by inversion: one uniform number decides, so a sample depends only on its own noise."""

from __future__ import annotations

import torch
from torch import Tensor


def draw(logits_BL: Tensor, uniform_B: Tensor, *, temperature: float = 1.0, top_k: int = 0) -> Tensor:
    """int64 [B] in [0, L): the first value at which the cumulative probability exceeds the uniform number.

    `temperature` divides the logits; with `top_k` only that many likeliest values keep their probability.
    """
    logits_BL = logits_BL.float() / temperature
    if 0 < top_k < logits_BL.shape[1]:
        least = logits_BL.topk(top_k, dim=1).values[:, -1:]
        logits_BL = logits_BL.masked_fill(logits_BL < least, -torch.inf)
    cumulative = torch.softmax(logits_BL, dim=1).cumsum(dim=1)
    # Rounding may leave the last sum below 1; a number above it means the last value that is possible.
    last = torch.isfinite(logits_BL).long().cumsum(dim=1).argmax(dim=1)
    return torch.minimum((uniform_B[:, None] >= cumulative).sum(dim=1), last)

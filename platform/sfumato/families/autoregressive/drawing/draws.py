"""Draws from logits by inversion: one uniform number decides, so a sample depends only on its own noise."""

from __future__ import annotations

import torch
from torch import Tensor


def limited(
    logits_BL: Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Tensor:
    """The logits [B, L] of what may be drawn, float32; the others are -inf.

    `temperature` divides the logits. Then only these keep their probability: with `top_k` that many likeliest
    values; with `top_p` the fewest likeliest values that together have at least that probability (Holtzman et
    al. 2020); with `min_p` those at least that fraction as likely as the likeliest (Nguyen et al. 2024).
    """
    logits_BL = logits_BL.float() / temperature
    if 0 < top_k < logits_BL.shape[1]:
        least = logits_BL.topk(top_k, dim=1).values[:, -1:]
        logits_BL = logits_BL.masked_fill(logits_BL < least, -torch.inf)
    if top_p < 1:
        ordered, place = torch.softmax(logits_BL, dim=1).sort(dim=1, descending=True)
        spare = torch.zeros_like(ordered, dtype=torch.bool)
        spare[:, 1:] = ordered.cumsum(dim=1)[:, :-1] >= top_p  # those before it are enough
        logits_BL = logits_BL.masked_fill(spare.scatter(1, place, spare), -torch.inf)
    if min_p > 0:
        chance = torch.softmax(logits_BL, dim=1)
        logits_BL = logits_BL.masked_fill(chance < min_p * chance.amax(dim=1, keepdim=True), -torch.inf)
    return logits_BL


def draw(
    logits_BL: Tensor,
    uniform_B: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Tensor:
    """int64 [B] in [0, L): the first value at which the cumulative probability exceeds the uniform number."""
    logits_BL = limited(logits_BL, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    cumulative = torch.softmax(logits_BL, dim=1).cumsum(dim=1)
    # Rounding may leave the last sum below 1; a number above it means the last value that is possible.
    last = torch.isfinite(logits_BL).long().cumsum(dim=1).argmax(dim=1)
    return torch.minimum((uniform_B[:, None] >= cumulative).sum(dim=1), last)

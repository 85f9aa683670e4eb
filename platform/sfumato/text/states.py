"""What encoders make of texts, and how the outputs of several are combined.

B batch, T tokens, D width of a token's state, P width of a text's pooled state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Tokens(NamedTuple):
    """Texts as numbers, each cut or padded to the same length."""

    ids: Tensor
    """int64 [B, T]."""
    mask: Tensor
    """bool [B, T], false for padding."""


class States(NamedTuple):
    """What a network sees of texts."""

    states: Tensor
    """[B, T, D], a vector per token; T is 0 if only pooled states are used."""
    mask: Tensor
    """bool [B, T], false for padding."""
    pooled: Tensor
    """[B, P], a vector per text; P is 0 if only tokens' states are used."""


@dataclass(frozen=True, slots=True)
class TextShape:
    """The sizes of `States`: `tokens` T, `width` D, `pooled` P."""

    tokens: int
    width: int
    pooled: int


def combined(parts: Sequence[States], beside: Sequence[bool]) -> States:
    """The states of several encoders as one.

    Tokens' states stand one after another, narrower ones padded with zeros (Esser et al. 2024, sec. 4, for
    CLIP and T5); where `beside` is true, they join those of the encoder before, token by token, along the
    width (Podell et al. 2023, sec. 2.1). Pooled states are joined along their width.
    """
    groups: list[tuple[Tensor, Tensor]] = []
    for part, joins in zip(parts, beside, strict=True):
        if joins and groups:
            states, mask = groups[-1]
            groups[-1] = torch.cat([states, part.states], dim=2), mask
        else:
            groups.append((part.states, part.mask))
    widest = max(states.shape[2] for states, _ in groups)
    states_BTD = torch.cat([F.pad(states, (0, widest - states.shape[2])) for states, _ in groups], dim=1)
    mask_BT = torch.cat([mask for _, mask in groups], dim=1)
    return States(states_BTD, mask_BT, torch.cat([part.pooled for part in parts], dim=1))


def combined_shape(parts: Sequence[TextShape], beside: Sequence[bool]) -> TextShape:
    """The shape of `combined` of such parts."""
    groups: list[TextShape] = []
    for part, joins in zip(parts, beside, strict=True):
        if joins and groups:
            groups[-1] = TextShape(groups[-1].tokens, groups[-1].width + part.width, 0)
        else:
            groups.append(part)
    return TextShape(
        sum(group.tokens for group in groups),
        max(group.width for group in groups),
        sum(part.pooled for part in parts),
    )

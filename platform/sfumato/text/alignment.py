"""Which tokens of one text stand for those of another.

Tokens that both have in the same order are the same; tokens in the place of others stand for these, evenly
if they are more or fewer (Hertz et al. 2022, sec. 3.2 and code).
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

import torch
from torch import Tensor

from sfumato.text.states import Tokens


def aligned(source: Sequence[int], target: Sequence[int], *, swap: bool) -> tuple[Tensor, Tensor]:
    """The part [S, T] of each source token's attention that goes to each target token, and which target
    tokens have no counterpart, bool [T]. Without `swap`, tokens in the place of others have none."""
    share_ST = torch.zeros(len(source), len(target))
    new_T = torch.ones(len(target), dtype=torch.bool)
    matcher = SequenceMatcher(None, source, target, autojunk=False)
    for kind, first, last, begin, end in matcher.get_opcodes():
        if kind == "equal" or (kind == "replace" and swap):
            one_to_one = last - first == end - begin
            part = torch.eye(last - first) if one_to_one else torch.full((1, 1), 1 / (end - begin))
            share_ST[first:last, begin:end] = part
            new_T[begin:end] = False
    return share_ST, new_T


def bare(tokens: Tokens, row: int, empty: Tokens) -> list[int]:
    """The numbers of a text without those that every text has, its beginning and its end."""
    marks = set(empty.ids[0][empty.mask[0]].tolist())
    return [number for number in tokens.ids[row][tokens.mask[row]].tolist() if number not in marks]


def places_of(word: Sequence[int], text: Sequence[int], first: int = 0) -> list[list[int]]:
    """Where a word's tokens stand in a text, one list for each time that they do, from `first` on."""
    length, found, at = len(word), [], first
    while length and at + length <= len(text):
        if list(text[at : at + length]) == list(word):
            found.append(list(range(at, at + length)))
            at += length
        else:
            at += 1
    return found

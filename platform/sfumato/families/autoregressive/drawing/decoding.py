"""Drawing codes from a causal transformer: with a cache, in parallel by Jacobi iteration, or with a draft.

Each position's code is a function of the codes before it and of its own noise, whatever way it is found. So
all ways give the same codes from the same numbers, for a batch of any size, but `rejection`, whose function
is another one with the same distribution:

    cache        one code at a time, earlier keys and values kept (`memory`)
    plain        the same without a cache
    jacobi       all codes at once from those of the round before, until none changes; a code is right as soon
                 as those before it are (Song et al. 2021)
    speculative  a draft proposes some codes, which the model checks in one pass (`speculation`)

Guidance (Ho & Salimans 2022) runs the conditional and the unconditional model side by side in one batch:
logits = unconditional + weight * (conditional - unconditional).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.families.autoregressive.code_model import CodeModel
from sfumato.families.autoregressive.drawing.draws import draw
from sfumato.families.autoregressive.drawing.reader import Ask, Reader, each
from sfumato.families.autoregressive.drawing.speculation import speculated


def draw_codes(network: CodeModel, ask: Ask, uniform_NT: Tensor, draft: CodeModel | None = None) -> Tensor:
    """Codes int64 [N, T]. `uniform_NT` has one number for each code, [N, T], or three for `rejection`,
    [N, T, 3]: for the proposal, its acceptance, and its replacement."""
    how = ask.options.decoding
    if how == "jacobi":
        return _jacobi(Reader(network, ask), ask, uniform_NT)
    if how == "speculative":
        assert draft is not None, "problems() asks for it"
        spare = ask.options.draft_length + 1
        model, drafting = (Reader(each, ask, spare=spare) for each in (network, draft))
        return speculated(model, drafting, ask, uniform_NT)
    reader = Reader(network, ask)
    codes_NT = ask.known_NT
    for position in range(codes_NT.shape[1], ask.length):
        ask.passes.model += 1
        ends = [position] * len(codes_NT)
        logits = reader.after(codes_NT, ends, 1) if how == "cache" else reader.all(codes_NT)
        chosen_N = draw(logits[:, -1], uniform_NT[:, position], **ask.options.limits)
        codes_NT = torch.cat([codes_NT, chosen_N[:, None]], dim=1)
    return codes_NT


def _jacobi(reader: Reader, ask: Ask, uniform_NT: Tensor) -> Tensor:
    known = ask.known_NT.shape[1]
    codes_NT = torch.cat([ask.known_NT, ask.known_NT.new_zeros(len(uniform_NT), ask.length - known)], dim=1)
    for _ in range(ask.length - known):
        ask.passes.model += 1
        logits = reader.all(codes_NT[:, :-1])
        after_NT = torch.cat([ask.known_NT, each(logits[:, known:], uniform_NT[:, known:], ask)], dim=1)
        if torch.equal(after_NT, codes_NT):
            break
        codes_NT = after_NT
    return codes_NT

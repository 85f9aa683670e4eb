"""Speculative decoding: a draft proposes some codes, which the model checks in one pass.

    shared      a proposal is right if the model draws the same code from the same uniform number
    rejection   it is accepted with probability min(1, p / q), and else replaced by a draw from max(0, p - q)
                (Leviathan et al. 2023, alg. 1)

Every row advances by its own right proposals and one code more, and leaves the batch when it is complete.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.families.autoregressive.drawing.draws import draw, limited
from sfumato.families.autoregressive.drawing.reader import Ask, Reader, each


def speculated(model: Reader, draft: Reader, ask: Ask, uniform: Tensor) -> Tensor:
    """Codes int64 [N, T] from the numbers [N, T], or [N, T, 3] for rejection."""
    judge = _shared if ask.options.speculation == "shared" else _rejection
    length, start = ask.length, ask.known_NT.shape[1]
    # Proposals may reach beyond the last code; they are drawn from its number and then left out.
    width = length + ask.options.draft_length + 1
    codes_NT = torch.cat([ask.known_NT, ask.known_NT.new_zeros(len(uniform), width - start)], dim=1)
    rows, ends = list(range(len(uniform))), [start] * len(uniform)
    while rows and start < length:
        count = min(ask.options.draft_length, length - min(ends))
        end_N1 = torch.tensor(ends, device=uniform.device)[:, None]
        places = end_N1 + torch.arange(count + 1, device=uniform.device)
        row_N1 = torch.tensor(rows, device=uniform.device)[:, None]
        noise = uniform[row_N1, places.clamp_max(length - 1)]
        mine_NT = codes_NT[rows]
        draft_logits = _propose(draft, mine_NT, ends, noise[:, :count], ask)
        logits = model.after(mine_NT, [end + count for end in ends], count + 1)
        proposed_NT = mine_NT.gather(1, places[:, :count])
        found_NT, right_N = judge(logits, draft_logits, proposed_NT, noise, ask)
        codes_NT[row_N1, places[:, : found_NT.shape[1]]] = found_NT
        room = [min(count, length - end) for end in ends]
        right = [min(count_, there) for count_, there in zip(right_N.tolist(), room, strict=True)]
        ask.passes.model += 1
        ask.passes.proposed += sum(room)
        ask.passes.accepted += sum(right)
        ends = [end + min(one + 1, found_NT.shape[1]) for end, one in zip(ends, right, strict=True)]
        staying = [at for at, end in enumerate(ends) if end < length]
        if len(staying) < len(rows):
            rows, ends = [rows[at] for at in staying], [ends[at] for at in staying]
            model.stay(staying)
            draft.stay(staying)
    return codes_NT[:, :length]


def _propose(draft: Reader, codes_NT: Tensor, ends: list[int], noise: Tensor, ask: Ask) -> Tensor:
    """Writes the draft's codes behind each row's end; the logits [N, count, codes] they were drawn from."""
    found = []
    for step in range(noise.shape[1]):
        logits = draft.after(codes_NT, [end + step for end in ends], 1)[:, -1]
        number_N = noise[:, step] if noise.dim() == 2 else noise[:, step, 0]
        chosen_N = draw(logits, number_N, **ask.options.limits)
        at_N1 = torch.tensor([end + step for end in ends], device=codes_NT.device)[:, None]
        codes_NT.scatter_(1, at_N1, chosen_N[:, None])
        found.append(logits)
    return torch.stack(found, dim=1)


def _shared(
    logits: Tensor, draft_logits: Tensor, proposed_NT: Tensor, noise: Tensor, ask: Ask
) -> tuple[Tensor, Tensor]:
    """The codes that the model draws, one more than proposals; and how many proposals of each row agree,
    [N]."""
    found_NT = each(logits, noise, ask)
    agrees = found_NT[:, : proposed_NT.shape[1]] == proposed_NT
    return found_NT, agrees.long().cumprod(dim=1).sum(dim=1)


def _rejection(
    logits: Tensor, draft_logits: Tensor, proposed_NT: Tensor, noise: Tensor, ask: Ask
) -> tuple[Tensor, Tensor]:
    """Proposals, the first wrong one of each row replaced; and how many are accepted before it, [N].

    No code is added to those all accepted: a row's codes would depend on how long the proposals are.
    """
    count = proposed_NT.shape[1]
    p, q = (_chances(logits_[:, :count], ask) for logits_ in (logits, draft_logits))
    at = proposed_NT[..., None]
    accepted_NT = noise[:, :count, 1] * q.gather(2, at)[..., 0] < p.gather(2, at)[..., 0]
    left = (p - q).clamp_min(0)
    # Where p equals q nothing is left and nothing is rejected; any distribution will do.
    left = torch.where(left.sum(2, keepdim=True) > 0, left, p)
    cumulative = (left / left.sum(2, keepdim=True)).cumsum(2)
    last = (left > 0).long().cumsum(2).argmax(2)
    instead_NT = torch.minimum((noise[:, :count, 2:] >= cumulative).sum(2), last)
    found_NT = torch.where(accepted_NT, proposed_NT, instead_NT)
    return found_NT, accepted_NT.long().cumprod(dim=1).sum(dim=1)


def _chances(logits: Tensor, ask: Ask) -> Tensor:
    flat = torch.softmax(limited(logits.flatten(0, 1), **ask.options.limits), dim=1)
    return flat.view(logits.shape)

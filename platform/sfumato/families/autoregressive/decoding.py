"""Drawing codes from a causal transformer: with a cache, in parallel by Jacobi iteration, or with a draft.

Each position's code is a function of the codes before it and of its own noise, whatever way it is found. So
all ways give the same codes from the same numbers, for a batch of any size, but `rejection`, whose function
is another one with the same distribution:

    cache        one code at a time, earlier keys and values kept
    plain        the same without a cache
    jacobi       all codes at once from those of the round before, until none changes; a code is right as soon
                 as those before it are (Song et al. 2021)
    speculative  a draft proposes some codes, which the model checks in one pass. `shared`: a proposal is
                 right if the model draws the same code from the same uniform number. `rejection`: it is
                 accepted with probability min(1, p / q), and else replaced by a draw from max(0, p - q)
                 (Leviathan et al. 2023, alg. 1)

Guidance (Ho & Salimans 2022) runs the conditional and the unconditional model side by side in one batch:
logits = unconditional + weight * (conditional - unconditional).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sfumato.families.autoregressive.code_model import Cache, CodeModel, shortened
from sfumato.families.autoregressive.draws import draw, limited
from sfumato.families.autoregressive.sampling import SamplingConfig


@dataclass
class Passes:
    """What drawing cost: passes of the model, and the draft's proposals and how many of them were right."""

    model: int = 0
    proposed: int = 0
    accepted: int = 0


@dataclass(frozen=True)
class Ask:
    """What to draw: `num` rows of `length` codes of these classes, beginning with `known_NT`."""

    label_N: Tensor
    length: int
    null_class: int
    guided: bool
    options: SamplingConfig
    known_NT: Tensor
    passes: Passes = field(default_factory=Passes)


class Reader:
    """A network with its cache and its guidance: logits of the positions that follow given codes."""

    def __init__(self, network: CodeModel, ask: Ask) -> None:
        self._network, self._ask = network, ask
        self._both = ask.guided and ask.options.guidance != 1
        label_N = ask.label_N
        self._label = (
            torch.cat([label_N, torch.full_like(label_N, ask.null_class)]) if self._both else label_N
        )
        self._caches: list[Cache] | None = None
        self._seen = 0

    def after(self, codes_NT: Tensor, last: int) -> Tensor:
        """Logits [N, last, codes] of the positions T - last + 1 .. T; the cache keeps what it has of them."""
        given = torch.cat([codes_NT, codes_NT]) if self._both else codes_NT
        length = codes_NT.shape[1]
        # The class token is position 0, so that after t codes t + 1 positions are known.
        self._seen = min(self._seen, length - last + 1)
        if self._caches is None or not self._seen:
            logits, self._caches = self._network(given, self._label)
        else:
            caches = shortened(self._caches, self._seen)
            logits, self._caches = self._network(given, self._label, caches, length + 1 - self._seen)
        self._seen = length + 1
        return self._guide(logits[:, -last:], length - last + 1)

    def all(self, codes_NT: Tensor) -> Tensor:
        """Logits [N, T + 1, codes], without the cache."""
        given = torch.cat([codes_NT, codes_NT]) if self._both else codes_NT
        return self._guide(self._network(given, self._label)[0], 0)

    def _guide(self, logits: Tensor, first: int) -> Tensor:
        if not self._both:
            return logits
        conditional, unconditional = logits.chunk(2)
        weights = [weight(self._ask.options, first + i, self._ask.length) for i in range(logits.shape[1])]
        weight_T1 = torch.tensor(weights, device=logits.device)[:, None]
        return unconditional + weight_T1 * (conditional - unconditional)


def weight(options: SamplingConfig, position: int, length: int) -> float:
    """The guidance of a position: constant, or rising from 1 at the first to its value at the last."""
    done = position / max(1, length - 1)
    share = {"constant": 1.0, "linear": done, "cosine": (1 - math.cos(math.pi * done)) / 2}
    return 1 + (options.guidance - 1) * share[options.guidance_schedule]


def draw_codes(network: CodeModel, ask: Ask, uniform_NT: Tensor, draft: CodeModel | None = None) -> Tensor:
    """Codes int64 [N, T]. `uniform_NT` has one number for each code, [N, T], or three for `rejection`,
    [N, T, 3]: for the proposal, its acceptance, and its replacement."""
    how = ask.options.decoding
    if how == "jacobi":
        return _jacobi(Reader(network, ask), ask, uniform_NT)
    if how == "speculative":
        assert draft is not None, "problems() asks for it"
        return _speculative(Reader(network, ask), Reader(draft, ask), ask, uniform_NT)
    reader = Reader(network, ask)
    codes_NT = ask.known_NT
    for position in range(codes_NT.shape[1], ask.length):
        ask.passes.model += 1
        logits = reader.after(codes_NT, 1) if how == "cache" else reader.all(codes_NT)
        chosen_N = draw(logits[:, -1], uniform_NT[:, position], **ask.options.limits)
        codes_NT = torch.cat([codes_NT, chosen_N[:, None]], dim=1)
    return codes_NT


def _jacobi(reader: Reader, ask: Ask, uniform_NT: Tensor) -> Tensor:
    known = ask.known_NT.shape[1]
    codes_NT = torch.cat([ask.known_NT, ask.known_NT.new_zeros(len(uniform_NT), ask.length - known)], dim=1)
    for _ in range(ask.length - known):
        ask.passes.model += 1
        logits = reader.all(codes_NT[:, :-1])
        after_NT = torch.cat([ask.known_NT, _each(logits[:, known:], uniform_NT[:, known:], ask)], dim=1)
        if torch.equal(after_NT, codes_NT):
            break
        codes_NT = after_NT
    return codes_NT


def _speculative(model: Reader, draft: Reader, ask: Ask, uniform: Tensor) -> Tensor:
    """All rows advance together, by as many codes as are right in every row."""
    judge = _shared if ask.options.speculation == "shared" else _rejection
    codes_NT = ask.known_NT
    while (start := codes_NT.shape[1]) < ask.length:
        count = min(ask.options.draft_length, ask.length - start)
        proposed_NT, draft_logits = codes_NT, []
        for position in range(start, start + count):
            logits = draft.after(proposed_NT, 1)[:, -1]
            number_N = uniform[:, position] if uniform.dim() == 2 else uniform[:, position, 0]
            chosen_N = draw(logits, number_N, **ask.options.limits)
            draft_logits.append(logits)
            proposed_NT = torch.cat([proposed_NT, chosen_N[:, None]], dim=1)
        ask.passes.model += 1
        fed_NT = proposed_NT[:, : ask.length - 1]  # nothing comes after the last code
        logits = model.after(fed_NT, fed_NT.shape[1] - start + 1)
        noise = uniform[:, start : start + logits.shape[1]]
        found_NT, right_N = judge(logits, torch.stack(draft_logits, 1), proposed_NT[:, start:], noise, ask)
        ask.passes.proposed += right_N.numel() * count
        ask.passes.accepted += int(right_N.sum())
        step = min(int(right_N.min()) + 1, found_NT.shape[1])
        codes_NT = torch.cat([codes_NT, found_NT[:, :step]], dim=1)
    return codes_NT


def _shared(
    logits: Tensor, draft_logits: Tensor, proposed_NT: Tensor, noise: Tensor, ask: Ask
) -> tuple[Tensor, Tensor]:
    """The codes that the model draws, one more than proposals where there is room; and how many proposals of
    each row agree, [N]."""
    found_NT = _each(logits, noise, ask)
    agrees = found_NT[:, : proposed_NT.shape[1]] == proposed_NT
    return found_NT, agrees.long().cumprod(dim=1).sum(dim=1)


def _rejection(
    logits: Tensor, draft_logits: Tensor, proposed_NT: Tensor, noise: Tensor, ask: Ask
) -> tuple[Tensor, Tensor]:
    """Proposals, the first wrong one of each row replaced; and how many are accepted before it, [N].

    No code is added to those all accepted: a row's codes would depend on where the others stopped.
    """
    count = proposed_NT.shape[1]
    p, q = (_chances(each[:, :count], ask) for each in (logits, draft_logits))
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


def _each(logits: Tensor, uniform_NT: Tensor, ask: Ask) -> Tensor:
    """A draw at every position, int64 [N, T]."""
    flat = draw(logits.flatten(0, 1), uniform_NT.flatten(), **ask.options.limits)
    return flat.view(uniform_NT.shape)

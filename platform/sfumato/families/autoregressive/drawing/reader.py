"""What is asked of a causal transformer of codes, and the network as it answers: with memory and guidance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sfumato.families.autoregressive.code_model import CodeModel
from sfumato.families.autoregressive.drawing.draws import draw
from sfumato.families.autoregressive.drawing.memory import MEMORIES
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
    """A network with its memory and its guidance: logits of the positions that follow given codes."""

    def __init__(self, network: CodeModel, ask: Ask, *, spare: int = 0) -> None:
        """The memory has room for `spare` positions more than the network has."""
        self._network, self._ask = network, ask
        self._halves = 2 if ask.guided and ask.options.guidance != 1 else 1
        label_N = ask.label_N
        self._label = (
            torch.cat([label_N, torch.full_like(label_N, ask.null_class)]) if self._halves == 2 else label_N
        )
        rows = self._halves * len(label_N)
        self.memory = MEMORIES[ask.options.cache](rows, ask.length + spare)
        weights = [weight(ask.options, position, ask.length) for position in range(ask.length)]
        self._weights = torch.tensor(weights, device=label_N.device)

    def after(self, codes_NT: Tensor, ends: Sequence[int], last: int) -> Tensor:
        """Logits [N, last, codes] of the positions end - last + 1 .. end of each row, given the codes before
        them; the memory keeps what it has of them, and what each row has beyond them is forgotten."""
        known = [min(has, end - last + 1) for has, end in zip(self.memory.lengths, ends, strict=False)]
        # All rows compute as many positions as the one that knows fewest.
        fresh = max(end + 1 - has for has, end in zip(known, ends, strict=True))
        self.memory.keep([end + 1 - fresh for end in ends] * self._halves)
        logits = self._network(self._given(codes_NT), self._label, self.memory, fresh)
        end_N1 = torch.tensor(ends, device=codes_NT.device)[:, None]
        return self._guide(logits[:, -last:], end_N1 + torch.arange(1 - last, 1, device=codes_NT.device))

    def all(self, codes_NT: Tensor) -> Tensor:
        """Logits [N, T + 1, codes], without the memory."""
        places_T = torch.arange(codes_NT.shape[1] + 1, device=codes_NT.device)
        return self._guide(self._network(self._given(codes_NT), self._label), places_T)

    def stay(self, rows: Sequence[int]) -> None:
        """Only these rows are asked from now on."""
        count = len(self._label) // self._halves
        every = [half * count + row for half in range(self._halves) for row in rows]
        self.memory.stay(every)
        self._label = self._label[every]

    def _given(self, codes_NT: Tensor) -> Tensor:
        return torch.cat([codes_NT] * self._halves)

    def _guide(self, logits: Tensor, places: Tensor) -> Tensor:
        """`places` [T] or [N, T] are the positions; what is beyond the last one counts as the last one."""
        if self._halves == 1:
            return logits
        conditional, unconditional = logits.chunk(2)
        weights = self._weights[places.clamp_max(self._ask.length - 1)][..., None]
        return unconditional + weights * (conditional - unconditional)


def weight(options: SamplingConfig, position: int, length: int) -> float:
    """The guidance of a position: constant, or rising from 1 at the first to its value at the last."""
    done = position / max(1, length - 1)
    share = {"constant": 1.0, "linear": done, "cosine": (1 - math.cos(math.pi * done)) / 2}
    return 1 + (options.guidance - 1) * share[options.guidance_schedule]


def each(logits: Tensor, uniform_NT: Tensor, ask: Ask) -> Tensor:
    """A draw at every position, int64 [N, T]."""
    flat = draw(logits.flatten(0, 1), uniform_NT.flatten(), **ask.options.limits)
    return flat.view(uniform_NT.shape)

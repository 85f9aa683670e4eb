"""Attention taken over from the sample of one text to that of another (Hertz et al. 2022, sec. 3.2).

Both are drawn from the same noise, step by step. In the first steps, the second sample's attention to words
becomes that of the first, word by word:

    M'_j = w_j sum_i share_ij M_i   for a word j that has a counterpart,   w_j M'_j   for one that is new

and its attention to itself, at coarse places, that of the first. Only the conditional half of guided calls is
controlled, as in the authors' code. What draws the first sample is computed as without control.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CROSS, OWN = "attn2", "attn1"
"""diffusers' names for attention to texts and of an image to itself."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is taken over, for rows of texts with T tokens."""

    share_NTT: Tensor
    """The part of each source token's attention that goes to each token of the new text."""
    new_NT: Tensor
    """Which tokens of the new text have no counterpart."""
    weight_NT: Tensor
    cross_steps: int
    own_steps: int
    places: int

    def to(self, device: torch.device) -> Plan:
        """On a device."""
        return replace(
            self,
            share_NTT=self.share_NTT.to(device),
            new_NT=self.new_NT.to(device),
            weight_NT=self.weight_NT.to(device),
        )

    def words(self, source: Tensor, target: Tensor) -> Tensor:
        """Attention to the new text, [N, heads, places, T], from that to the source's and its own."""
        moved = torch.einsum("nhps,nst->nhpt", source, self.share_NTT.to(source))
        mixed = torch.where(self.new_NT[:, None, None], target, moved)
        weighted: Tensor = mixed * self.weight_NT[:, None, None].to(mixed)
        return weighted


class Pair(nn.Module):
    """A network that is called for both samples: its rows are those of the source, then those of the other.

    Of guided calls there are several groups of such rows, the last of which is conditional. Each sample's
    rows run by themselves, as many as without the other.
    """

    def __init__(self, network: nn.Module, rows: int, plan: Plan) -> None:
        super().__init__()
        self.network = network
        self._rows, self._plan = rows, plan
        self._times: list[float] = []
        self._of_source: dict[str, Tensor] = {}
        self._is_source = False
        self._sums: dict[tuple[int, int], Tensor] = {}
        self._counts: dict[tuple[int, int], int] = {}
        self._size = (0, 0)

    def forward(
        self, x: Tensor, t: Tensor, given: Mapping[str, Tensor], return_dict: bool = False
    ) -> tuple[Tensor]:
        """The network's output for all rows."""
        time = float(t.flatten()[0])
        if time not in self._times:
            self._times.append(time)
        self._size = (x.shape[-2], x.shape[-1])
        outputs = []
        for number, is_source in enumerate((True, False)):
            self._is_source = is_source
            own = {name: self._half(value, number) for name, value in given.items()}
            at = self._half(t, number) if t.dim() else t
            outputs.append(self.network(self._half(x, number), at, own, return_dict=False)[0])
        self._of_source.clear()
        halves = [output.view(-1, self._rows, *output.shape[1:]) for output in outputs]
        return (torch.stack(halves, dim=1).flatten(0, 2),)

    def _half(self, value: Tensor, number: int) -> Tensor:
        return value.view(-1, 2, self._rows, *value.shape[1:])[:, number].flatten(0, 1)

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Control the network's attention inside of the block."""
        before = [(name, module, module.processor) for name, module in attentions(self.network)]
        for name, module, processor in before:
            module.processor = Controlled(self, name, processor)
        try:
            yield
        finally:
            for _, module, processor in before:
                module.processor = processor

    def acts(self, name: str, places: int) -> bool:
        """Whether this attention is taken over in this step."""
        step = len(self._times) - 1
        if name.endswith(CROSS):
            return step < self._plan.cross_steps
        return step < self._plan.own_steps and places <= self._plan.places

    def maps(self) -> Tensor:
        """The new sample's attention to all tokens, [N, T, h, w], at the finest places that attend."""
        finest = max(self._sums, key=lambda size: size[0] * size[1])
        whole = [
            F.interpolate(total / self._counts[size], finest, mode="bilinear", align_corners=False)
            for size, total in self._sums.items()
        ]
        return torch.stack(whole).mean(dim=0)

    def seen(self, name: str, call: Call) -> Tensor:
        """What an attention returns, controlled in the new sample's rows."""
        cross, acts = name.endswith(CROSS), self.acts(name, call.places)
        if self._is_source:
            if acts:
                self._of_source[name] = call.probabilities()[-self._rows :]
            return call.plain()
        if not acts:
            if cross:
                self._note(call.probabilities()[-self._rows :])
            return call.plain()
        probabilities = call.probabilities()
        mine, theirs = probabilities[-self._rows :], self._of_source.pop(name)
        taken = self._plan.words(theirs, mine) if cross else theirs
        if cross:
            self._note(taken)
        return call.by(torch.cat([probabilities[: -self._rows], taken]))

    def _note(self, probabilities: Tensor) -> None:
        places = probabilities.shape[2]
        height, width = self._size
        rows = round((places * height / width) ** 0.5)
        size = (rows, places // rows)
        mean = probabilities.mean(dim=1).transpose(1, 2).reshape(len(probabilities), -1, *size)
        self._sums[size] = self._sums.get(size, torch.zeros_like(mean)) + mean
        self._counts[size] = self._counts.get(size, 0) + 1


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an attention: B rows of P places, T tokens."""

    attention: Any
    processor: Any
    hidden: Tensor
    states: Tensor | None
    mask: Tensor | None
    more: Mapping[str, Any]

    @property
    def places(self) -> int:
        """That attend."""
        return self.hidden.shape[1]

    def plain(self) -> Tensor:
        """What the library computes."""
        found: Tensor = self.processor(
            self.attention,
            self.hidden,
            encoder_hidden_states=self.states,
            attention_mask=self.mask,
            **self.more,
        )
        return found

    def probabilities(self) -> Tensor:
        """[B, heads, P, T]."""
        attention, over = self.attention, self._over
        query, key = (
            self._heads(norm(layer(x)) if norm is not None else layer(x))
            for layer, norm, x in (
                (attention.to_q, attention.norm_q, self.hidden),
                (attention.to_k, attention.norm_k, over),
            )
        )
        scores = query @ key.transpose(-1, -2) * attention.scale
        mask = attention.prepare_attention_mask(self.mask, over.shape[1], len(over))
        if mask is not None:
            scores = scores + mask.view(len(over), attention.heads, -1, mask.shape[-1])
        found: Tensor = scores.softmax(dim=-1)
        return found

    def by(self, probabilities: Tensor) -> Tensor:
        """What these make of the values, [B, P, D]."""
        attention = self.attention
        mixed = probabilities @ self._heads(attention.to_v(self._over))
        joined = mixed.transpose(1, 2).flatten(2)
        found: Tensor = attention.to_out[1](attention.to_out[0](joined))
        if attention.residual_connection:
            found = found + self.hidden
        scaled: Tensor = found / attention.rescale_output_factor
        return scaled

    @property
    def _over(self) -> Tensor:
        return self.hidden if self.states is None else self.states

    def _heads(self, x_BTD: Tensor) -> Tensor:
        heads: int = self.attention.heads
        return x_BTD.view(*x_BTD.shape[:2], heads, -1).transpose(1, 2)


@dataclass(frozen=True, slots=True)
class Controlled:
    """The processor of an attention while it is controlled."""

    pair: Pair
    name: str
    processor: Any

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **more: Any,
    ) -> Tensor:
        """As the library's own."""
        call = Call(attn, self.processor, hidden_states, encoder_hidden_states, attention_mask, more)
        return self.pair.seen(self.name, call)


def attentions(network: nn.Module) -> list[tuple[str, Any]]:
    """Those of transformer blocks to texts and to themselves, by name."""
    return [
        (name, module)
        for name, module in network.named_modules()
        if name.endswith((f".{CROSS}", f".{OWN}")) and hasattr(module, "processor")
    ]

"""Samples of two texts of which one takes over the attention of the other; implements
`core.attention.HasAttention`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.core.attention import Attended, Control
from sfumato.core.family import Nets, SampleRequest
from sfumato.core.rng import SampleRng
from sfumato.errors import ConfigError
from sfumato.families.diffusion.adapting.steering import core
from sfumato.families.diffusion.attention.attention_control import Pair, Plan, attentions
from sfumato.families.diffusion.guidance.guiding import Guiding
from sfumato.families.diffusion.guidance.labels import Guided
from sfumato.families.diffusion.networks.pixart import PixArt
from sfumato.families.diffusion.networks.unet_text import TextUNet
from sfumato.families.diffusion.parts import Parts
from sfumato.text.alignment import aligned, bare, places_of
from sfumato.text.condition import TextCondition
from sfumato.text.config import NAME


def attention_problems(parts: Parts, nets: Nets) -> list[str]:
    """A network without attention to texts alone; an adapter that has attention of its own."""
    if parts.text is None or not isinstance(core(nets["ema"]), (TextUNet, PixArt)):
        kind = parts.config.network.kind
        return [f"network {kind} has no cross-attention to texts; use a model of unet_text or pixart"]
    if any(isinstance(module.processor, nn.Module) for _, module in attentions(nets["ema"])):
        return ["the model's adapter has attention of its own; use its base"]
    return []


def attended(
    parts: Parts,
    guiding: Guiding,
    nets: Nets,
    source: SampleRequest,
    target: SampleRequest,
    rng: SampleRng,
    control: Control,
) -> Attended:
    """Both samples, step by step."""
    assert parts.text is not None, "checked among the problems"
    texts = [list(request.texts(NAME) or [""] * rng.rows) for request in (source, target)]
    words = _Words(parts.text, nets, texts[0], texts[1])
    steps = len(parts.objective.noise_levels(target.options)) - 1
    one, other = (guiding.guided(nets, request, rng.rows) for request in (source, target))
    pair = Pair(one.network, rng.rows, words.plan(control, steps).to(next(nets["ema"].parameters()).device))
    both = _both(one, other, pair)
    noise_NChw = rng.beginning(*parts.data.shape).to(next(nets["ema"].parameters()).device)
    options, clip = target.options, parts.clips(target.options)
    with pair.attached():
        x_MChw = parts.objective.sample(
            both, torch.cat([noise_NChw, noise_NChw]), options, rng.twice(), clip=clip
        )
    images = [x if parts.space is None else parts.space.decode(nets, x) for x in x_MChw.chunk(2)]
    first, second = (image.clamp(-1, 1) for image in images)
    return Attended(first, second, words.names, words.maps(pair.maps()))


def _both(one: Guided, other: Guided, pair: Pair) -> Guided:
    """A network called for the rows of both."""

    def joined(first: Any, second: Any) -> Any:
        if not isinstance(first, Mapping):
            return first
        return {name: torch.cat([value, second[name]]) for name, value in first.items()}

    return replace(
        one,
        network=pair,
        given=joined(one.given, other.given),
        null=joined(one.null, other.null),
        nothing=joined(one.nothing, other.nothing),
    )


class _Words:
    """The tokens of two texts of each row, as the network attends to them."""

    def __init__(self, text: TextCondition, nets: Nets, source: Sequence[str], target: Sequence[str]) -> None:
        self._text, self._nets, self._target = text, nets, target
        self._source_tokens, self._tokens = text.tokens(nets, source), text.tokens(nets, target)
        self._empty = text.tokens(nets, [""], prefix=False)
        self.names = [list(dict.fromkeys(words.split())) for words in target]
        """Each row's words, each once."""

    def plan(self, control: Control, steps: int) -> Plan:
        """What is taken over. Raises ConfigError for a word with a weight that is not in a text."""
        rows = []
        for row, text in enumerate(self._target):
            parts = [
                aligned(before.ids[row].tolist(), after.ids[row].tolist(), swap=control.swap)
                for before, after in zip(self._source_tokens, self._tokens, strict=True)
            ]
            weight_T = torch.ones(sum(len(new_T) for _, new_T in parts))
            for word, factor in control.weights.items():
                places = self._places(word, row)
                if not places:
                    raise ConfigError(f"reweight: {word!r} is not in the text {text!r}; name words of it")
                weight_T[places] = factor
            shares = torch.block_diag(*(share_ST for share_ST, _ in parts))  # type: ignore[no-untyped-call]
            rows.append((shares, torch.cat([new_T for _, new_T in parts]), weight_T))
        share_NTT, new_NT, weight_NT = (torch.stack(each) for each in zip(*rows, strict=True))
        numbers = (round(steps * control.cross), round(steps * control.own), control.places)
        return Plan(share_NTT, new_NT, weight_NT, *numbers)

    def maps(self, maps_NThw: Tensor) -> list[Tensor]:
        """Those of each row's words: of a word of several tokens, their mean."""
        found = []
        for row, words in enumerate(self.names):
            each = [maps_NThw[row, self._places(word, row)].mean(dim=0) for word in words]
            found.append(torch.stack(each) if each else maps_NThw[row, :0])
        return found

    def _places(self, word: str, row: int) -> list[int]:
        """Of all tokens of a word in a row's new text; empty if it is not there, or was cut off."""
        found, before = [], 0
        for tokens, alone, empty in zip(
            self._tokens, self._text.tokens(self._nets, [word], prefix=False), self._empty, strict=True
        ):
            ids = tokens.ids[row].tolist()
            found += [before + at for places in places_of(bare(alone, 0, empty), ids) for at in places]
            before += len(ids)
        return found

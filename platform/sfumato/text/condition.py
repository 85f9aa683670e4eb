"""From captions to the inputs of a network: dropped, cut into tokens, encoded if the encoder is frozen.

Inputs are named tensors with one row per text, which travel in a batch. For the encoder `text_encoder` they
are either `text_encoder_ids` and `text_encoder_mask`, which the network encodes itself, or
`text_encoder_states`, `text_encoder_mask` and `text_encoder_pooled`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sfumato.core.batch import Batch
from sfumato.core.conditions import NEGATIVE
from sfumato.core.family import Frozen, Nets, SampleRequest
from sfumato.core.rng import Rng
from sfumato.core.stored import Weights
from sfumato.errors import ConfigError
from sfumato.text.config import NAME, TextConfig, named, prefixed
from sfumato.text.encoders import TextEncoderConfig
from sfumato.text.network import TextConditioned, named_inputs, used
from sfumato.text.new_words import NewWord
from sfumato.text.states import States, Tokens

Inputs = Mapping[str, Tensor]
DROPPED = "text_dropped"
"""In a prepared batch: which captions were dropped for all encoders, bool [B]."""


class TextCondition:
    """The texts of one model."""

    def __init__(self, config: TextConfig, *, inside: bool = False, new_word: NewWord | None = None) -> None:
        """With `inside`, frozen encoders are a part of the network that trains; one that has a `new_word` has
        its vectors."""
        self.config = config
        self.encoders = named(config.encoders)
        self._inside, self._new_word = inside, new_word
        still = {name: encoder.frozen() for name, encoder in self.encoders.items() if not encoder.trained}
        self.frozen: Mapping[str, Frozen] = {} if inside else still
        """The networks that the family has to hold, also for sampling."""
        self.stored: Mapping[str, Weights] = {
            name: frozen.weights for name, frozen in still.items() if inside and frozen.weights is not None
        }
        """Where the weights of frozen encoders are that are a part of the network."""

    def prepare(self, nets: Nets, batch: Batch, rng: Rng) -> Batch:
        """The batch with the inputs of its captions, some of which are dropped (Ho & Salimans 2022, alg. 1).

        An encoder does not see a caption if that is dropped for all of them, or for it alone.
        """
        captions = list(batch[self.config.column]) if self.config.column in batch else None
        device = batch["image"].device
        dropped_B = rng.uniform() < self.config.dropout
        found = {**batch, DROPPED: dropped_B}
        for name, encoder in self.encoders.items():
            own_B = dropped_B | (rng.uniform() < encoder.dropout) if encoder.dropout else dropped_B
            if f"{name}_states" in batch:
                found |= self._precomputed(name, encoder, nets, batch, own_B)
                continue
            assert captions is not None, "checked among the problems"
            kept = ["" if drop else text for text, drop in zip(captions, own_B.tolist(), strict=True)]
            found |= self._inputs(name, encoder, nets, kept, device)
        return found

    def asked(self, request: SampleRequest, rows: int, guidance: float) -> tuple[list[str], list[str]]:
        """The texts of a request, and those to be guided away from: the empty one where none is given.

        The latter are left out where nothing is guided. Raises ConfigError for a negative text that has no
        effect.
        """
        texts, away = request.texts(NAME), request.texts(NEGATIVE + NAME)
        if away is not None and guidance == 1:
            raise ConfigError("negative: has no effect with guidance=1; set it above 1, or leave this out")
        empty = [""] * rows
        return list(texts or empty), [] if guidance == 1 else list(away or empty)

    def inputs(self, nets: Nets, texts: Sequence[str], device: torch.device) -> Inputs:
        """The inputs of these texts."""
        found: dict[str, Tensor] = {}
        for name, encoder in self.encoders.items():
            found |= self._inputs(name, encoder, nets, texts, device)
        return found

    def tokens(self, nets: Nets, texts: Sequence[str], *, prefix: bool = True) -> list[Tokens]:
        """Texts as numbers, in the order of the states that the network attends to; of encoders whose states
        join along the width, those of the first."""
        found: list[Tokens] = []
        told = [prefixed(text, self.config.prefix) for text in texts] if prefix else list(texts)
        for name, encoder in self.encoders.items():
            if encoder.uses != "pooled" and not (encoder.beside and found):
                found.append(self._tokens(name, encoder, nets, told))
        return found

    def of(self, batch: Batch) -> Inputs:
        """The inputs in a prepared batch."""
        names = [name for encoder in self.encoders for name in named_inputs(encoder)]
        return {name: batch[name] for name in names if name in batch}

    def wrap(self, network: nn.Module, *, pooled: bool = False) -> TextConditioned:
        """The network with the encoders that are trained with it; `pooled` if it sees pooled states alone."""
        return TextConditioned(network, self.encoders, pooled=pooled, inside=self._inside)

    def _precomputed(
        self, name: str, encoder: TextEncoderConfig, nets: Nets, batch: Batch, dropped_B: Tensor
    ) -> dict[str, Tensor]:
        """The states in the data, those of dropped rows replaced by those of the empty text."""
        null = nets[name](*(part.to(dropped_B.device) for part in encoder.tokenize([""], nets[name])))
        parts = [
            torch.where(
                dropped_B.view(-1, *[1] * (empty.dim() - 1)), empty, batch[f"{name}_{part}"].to(empty)
            )
            for part, empty in zip(States._fields, null, strict=True)
        ]
        return used(name, encoder, States(*parts))

    def _inputs(
        self,
        name: str,
        encoder: TextEncoderConfig,
        nets: Nets,
        texts: Sequence[str],
        device: torch.device,
    ) -> dict[str, Tensor]:
        told = [prefixed(text, self.config.prefix) for text in texts]
        ids, mask = (part.to(device) for part in self._tokens(name, encoder, nets, told))
        if encoder.trained or self._inside:
            return {f"{name}_ids": ids, f"{name}_mask": mask}
        return used(name, encoder, nets[name](ids, mask))

    def _tokens(self, name: str, encoder: TextEncoderConfig, nets: Nets, texts: Sequence[str]) -> Tokens:
        if not self._inside:
            return encoder.tokenize(texts, nets.get(name))
        modules = (module for net in nets.values() for module in net.modules())
        holder = next(module for module in modules if isinstance(module, TextConditioned))
        if self._new_word is None:
            return encoder.tokenize(texts, holder.encoders[name])
        return self._new_word.tokenize(encoder, texts, holder.encoders[name])

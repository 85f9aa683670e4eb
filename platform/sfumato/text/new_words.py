"""New words of text encoders: vectors beside an encoder's table of tokens, and texts that hold the word.

The word's vectors have the numbers after the last of the tokenizer's, as where a library adds tokens to it.
Tokenizers do not know them: a text is cut into tokens with a stand-in in the word's place, whose numbers are
then replaced. So any tokenizer serves that keeps words apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.text.encoders import TextEncoderConfig
from sfumato.text.states import Tokens

STAND_IN = "a"


class Vectors(nn.Module):
    """A table of tokens with further ones, numbered from its length on."""

    def __init__(self, table: nn.Embedding, count: int) -> None:
        super().__init__()
        self.base_layer = table
        self.new_VD = nn.Parameter(torch.zeros(count, table.embedding_dim))

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors [*ids, D]."""
        known = self.base_layer.num_embeddings
        new = ids >= known
        old_D = self.base_layer(torch.where(new, torch.zeros_like(ids), ids))
        new_D = self.new_VD[(ids - known).clamp(min=0)].to(old_D.dtype)
        return torch.where(new.unsqueeze(-1), new_D, old_D)


@dataclass(frozen=True, slots=True)
class NewWord:
    """A word and the number of its vectors."""

    word: str
    vectors: int

    def tokenize(self, encoder: TextEncoderConfig, texts: Sequence[str], network: nn.Module) -> Tokens:
        """As the encoder does, with the word's numbers where it stands.

        `network` is the encoder's, whose table holds the vectors.
        """
        table = embedding_of(network)
        assert isinstance(table, Vectors), "it was extended"
        pieces = [[part.strip() for part in text.split(self.word)] for text in texts]
        ids, mask = encoder.tokenize([_joined(each) for each in pieces], network)
        ids, mask = ids.clone(), mask.clone()
        own = encoder.tokenize([""], network)
        (opens, closes), padding = ends(encoder, network), int(own.ids[0, -1])
        new = [table.base_layer.num_embeddings + number for number in range(self.vectors)]
        for row, parts in enumerate(pieces):
            if len(parts) == 1:
                continue
            lefts = [_joined(parts[:end]) for end in range(1, len(parts))]
            counts = encoder.tokenize([*lefts, *map(_followed, lefts)], network).mask.sum(dim=1) - closes
            places = zip(counts[: len(lefts)].tolist(), counts[len(lefts) :].tolist(), strict=True)
            found = ids[row, : int(mask[row].sum())].tolist()
            for start, end in reversed(list(places)):
                found[max(start, opens) : end] = new
            if len(found) > ids.shape[1]:
                found = [*found[: ids.shape[1] - closes], *found[len(found) - closes :]]
            mask[row] = torch.arange(ids.shape[1]) < len(found)
            ids[row] = torch.tensor(found + [padding] * (ids.shape[1] - len(found)))
        return Tokens(ids, mask)


def _joined(parts: Sequence[str]) -> str:
    """Parts of a text with the stand-in between them."""
    words = [word for part in parts for word in (STAND_IN, part)][1:]
    return " ".join(word for word in words if word)


def _followed(left: str) -> str:
    return f"{left} {STAND_IN}".lstrip()


def ends(encoder: TextEncoderConfig, network: nn.Module) -> tuple[int, int]:
    """How many tokens of its own an encoder sets before and after a text's."""
    ids, mask = encoder.tokenize(["", STAND_IN], network)
    own = int(mask[0].sum())
    before = next((at for at in range(own) if ids[0, at] != ids[1, at]), own)
    if before == own == 2:  # a stand-in that is unknown may have the last one's number
        before = 1
    return before, own - before


def extended(encoder: nn.Module, count: int) -> None:
    """Give an encoder's table `count` more vectors, in place."""
    model = _model(encoder)
    model.set_input_embeddings(Vectors(model.get_input_embeddings(), count))


def embedding_of(encoder: nn.Module) -> nn.Module:
    """An encoder's table of tokens."""
    found: nn.Module = _model(encoder).get_input_embeddings()
    return found


def _model(encoder: nn.Module) -> Any:
    """The library's model in an encoder."""
    return next(module for module in encoder.modules() if hasattr(module, "set_input_embeddings"))

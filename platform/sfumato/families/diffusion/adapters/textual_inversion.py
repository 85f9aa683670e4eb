"""Textual Inversion (Gal et al. 2022, sec. 4): a new word, whose vectors alone train, stands for what a few
pictures show.

Captions contain the word, such as `<thing>`. Its vectors start as the mean of those of another word, and are
read by every text encoder of the model, each of which has its own. Exported, they are the files that
diffusers' `load_textual_inversion` and other programs read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sfumato.core.family import Nets
from sfumato.core.from_data import DataSet, FromData
from sfumato.core.pretrained import Pretrained
from sfumato.errors import CheckpointError, ConfigError
from sfumato.families.diffusion.adapters import AdapterConfig
from sfumato.text.network import TextConditioned
from sfumato.text.new_words import NewWord, Vectors, embedding_of, ends, extended

KEYS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
"""What files of two encoders call the vectors of each."""


class TextualInversionConfig(AdapterConfig, FromData):
    """A new word."""

    inside: ClassVar[str] = "base_layer"
    kind: Literal["textual_inversion"] = Field("textual_inversion", description="Selects a new word.")
    word: str = Field(
        "<thing>",
        min_length=2,
        pattern=r"^\S+$",
        description="The new word, as captions and prompts have it.",
    )
    vectors: int = Field(1, ge=1, le=64, description="How many vectors it has; each takes a token's place.")
    like: str = Field("a", min_length=1, description="The word or words that it starts as.")
    column: str = Field("text", description="The column of captions, each of which has to contain the word.")
    start: Pretrained | None = Field(
        None, description="Start from this safetensors file instead, as diffusers' scripts write it."
    )

    @property
    def reaches_encoders(self) -> bool:
        """The vectors are theirs."""
        return True

    def new_word(self) -> NewWord:
        """How texts with the word become tokens."""
        return NewWord(self.word, self.vectors)

    def trained(self) -> tuple[str, ...]:
        """The vectors."""
        return ("*.new_VD",)

    def added(self, network: nn.Module) -> nn.Module:
        """With places for the vectors in every encoder's table of tokens."""
        for encoder in _encoders(network).values():
            extended(encoder, self.vectors)
        return network

    @property
    def begins(self) -> bool:
        """The vectors are those of a word, or a file's."""
        return True

    def begin(self, network: nn.Module) -> None:
        """Give the vectors their first values, in place. Raises CheckpointError for a file that does not
        fit."""
        stored = None if self.start is None else read_vectors(Path(self.start.file))
        for name, encoder in _encoders(network).items():
            table = embedding_of(encoder)
            assert isinstance(table, Vectors), "it was extended"
            if stored is not None:
                table.new_VD.copy_(self._stored(stored, name, table.new_VD.shape))
                continue
            conditioned = _conditioned(network)
            assert conditioned is not None, "it has encoders"
            config = conditioned.configs[name]
            ids, mask = config.tokenize([self.like], encoder)
            opens, closes = ends(config, encoder)
            inner = ids[0][mask[0]][opens : int(mask.sum()) - closes]
            table.new_VD.copy_(table.base_layer.weight[inner].mean(dim=0).expand_as(table.new_VD))

    def problems(self, network: nn.Module) -> list[str]:
        """A model without text encoders."""
        if not _encoders(network):
            return ["model.adapter: textual_inversion needs a model of texts"]
        if self.start is not None and self.start.source[0] != "file":
            return ["model.adapter.start: name a safetensors file in model.adapter.start.file"]
        return []

    def learnt(self, data: DataSet, note: Callable[[str], None]) -> Self:
        """Itself. Raises ConfigError where captions lack the word."""
        lacking, total, first = 0, 0, ""
        for caption in data.values(self.column):
            total += 1
            if self.word not in caption:
                lacking, first = lacking + 1, first or caption
        if lacking:
            raise ConfigError(
                f"model.adapter.word: {lacking:,} of {total:,} captions lack {self.word!r}, such as {first!r}"
                "; write it into each"
            )
        return self

    def files(self, nets: Nets, base: str) -> VectorFiles:
        """The vectors of each encoder."""
        found = {}
        for name, encoder in _encoders(nets["ema"]).items():
            table = embedding_of(encoder)
            assert isinstance(table, Vectors), "it was extended"
            found[name] = table.new_VD.detach().cpu().clone()
        return VectorFiles(self.word, found)

    def _stored(self, stored: Mapping[str, Tensor], name: str, shape: torch.Size) -> Tensor:
        assert self.start is not None, "read from it"
        place = self.start.file
        found = stored.get(KEYS.get(name, ""), stored.get(self.word))
        if found is None and len(stored) == 1:
            found = next(iter(stored.values()))
        if found is None:
            raise CheckpointError(f"model.adapter.start: {place} has {', '.join(stored)}, not {self.word!r}")
        found = found.view(-1, found.shape[-1])
        if found.shape != shape:
            theirs, ours = ("x".join(map(str, each)) for each in (found.shape, shape))
            raise CheckpointError(
                f"model.adapter.start: {place} holds vectors of {theirs}, the model takes {ours}; it was "
                "made for another base, or set model.adapter.vectors"
            )
        return found

    @classmethod
    def tiny(cls) -> Self:
        """Two vectors."""
        return cls(vectors=2)


@dataclass(frozen=True, slots=True)
class VectorFiles:
    """`learned_embeds.safetensors`; of several encoders one file each, and one that holds all of them."""

    word: str
    vectors: Mapping[str, Tensor]

    def write(self, folder: Path, name: str) -> None:
        """Into a new folder."""
        folder.mkdir(parents=True)
        for number, value in enumerate(self.vectors.values(), 1):
            suffix = "" if number == 1 else f"_{number}"
            save_file({self.word: value.contiguous()}, folder / f"learned_embeds{suffix}.safetensors")
        if set(self.vectors) == set(KEYS):
            both = {KEYS[encoder]: value.contiguous() for encoder, value in self.vectors.items()}
            save_file(both, folder / f"{name}.safetensors")


def read_vectors(file: Path) -> dict[str, Tensor]:
    """The vectors in a file, by name. Raises CheckpointError for any other file."""
    if file.suffix != ".safetensors":
        raise CheckpointError(
            f"{file} is not a safetensors file; a pickle is never read, so convert it first"
        )
    try:
        with safe_open(file, framework="pt") as content:
            return {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read as safetensors ({error})") from None


def _conditioned(network: nn.Module) -> TextConditioned | None:
    return next((module for module in network.modules() if isinstance(module, TextConditioned)), None)


def _encoders(network: nn.Module) -> dict[str, nn.Module]:
    conditioned = _conditioned(network)
    return {} if conditioned is None else dict(conditioned.encoders.items())


COMPONENT = TextualInversionConfig

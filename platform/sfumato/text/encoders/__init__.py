"""The kinds of text encoders. A file here is a kind: a `TextEncoderConfig`, and the network that it builds.

An encoder is either a part of the network that trains (`trained`), or frozen and a network of its own. It is
called with the tokens and returns their states: (ids int64 [B, T], mask bool [B, T]) -> `States`.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Literal, Self

from pydantic import Field
from torch import nn

from sfumato.core.components import Component, Components
from sfumato.core.family import Frozen
from sfumato.core.identity import changed
from sfumato.errors import ConfigError
from sfumato.text.states import TextShape, Tokens


class TextEncoderConfig(Component, ABC):
    """Kind and size of a text encoder, which it builds."""

    trained: ClassVar[bool] = False
    """Whether it is a part of the network that trains; otherwise it is frozen."""
    tokens: int | None = Field(
        None, ge=3, description="Tokens of a text: longer ones are cut. null: as many as the encoder takes."
    )
    uses: Literal["states", "pooled", "both"] = Field(
        "both",
        description="What the model sees: a state per token, one pooled state per text, or both. Flux takes "
        "the pooled one of CLIP, and the states of T5.",
    )
    beside: bool = Field(
        False,
        description="Join its tokens' states to those of the encoder before, token by token (SDXL's two "
        "CLIPs), instead of putting its tokens after them (SD3's T5).",
    )
    dropout: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of captions that are replaced by the empty text for this encoder alone.",
    )

    padding: Literal["states", "zero"] = Field(
        "states",
        description="What the model sees after the end of a text: the encoder's states, or zeros, which "
        "`sfumato precompute` need not store.",
    )

    @abstractmethod
    def shape(self) -> TextShape:
        """The shape of what it returns, whatever `uses` says. Raises ConfigError before it is looked up."""

    @abstractmethod
    def tokenize(self, texts: Sequence[str], network: nn.Module | None) -> Tokens:
        """Texts as tokens; `network` is the frozen one, which may hold its tokenizer."""

    @abstractmethod
    def build(self) -> nn.Module:
        """The network, with weights drawn from torch's global generator."""

    @property
    def layer_used(self) -> int:
        """Whose states it returns, counted from the last, -1."""
        return -1

    @property
    def as_called(self) -> bool:
        """Whether its model gives the same states where a caller neither masks padding nor names a layer."""
        return self.layer_used == -1 and self.padding == "states"

    def frozen(self) -> Frozen:
        """The network and its stored weights, if it is not `trained`."""
        raise AssertionError("it is trained")

    def learnt(self, captions: Callable[[], Iterable[str]]) -> Self:
        """The encoder with all that it learns from the captions of the data set."""
        return self

    def lengths(self, captions: Sequence[str]) -> list[int] | None:
        """How many tokens captions have before they are cut; None if that is not known yet."""
        return None

    def content(self) -> str:
        """A digest of all that its states depend on."""
        seen = {
            name: value
            for name, value in {**changed(self), "kind": self.kind, "tokens": self.shape().tokens}.items()
            if name not in ("uses", "beside", "dropout", "shard")
        }
        return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()

    def in_diffusers(self, network: nn.Module) -> tuple[Any, Any]:
        """transformers' model and tokenizer, which diffusers' pipelines call as this encoder is called.

        Raises ConfigError if there are none.
        """
        raise ConfigError(f"model.text: diffusers' pipelines have no text encoder {self.kind}")

    def problems(self) -> list[str]:
        """Why it cannot be used, one line each."""
        return []


ENCODERS: Components[TextEncoderConfig] = Components("sfumato.text.encoders", TextEncoderConfig)

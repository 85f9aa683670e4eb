"""A small transformer that is trained together with the model, on a vocabulary learnt from its captions.

For captions in a language that no pretrained encoder knows, and where there are no weights. The network is
CLIP's (Radford et al. 2021, sec. 2.4; transformers' `CLIPTextModel`): attention is causal, and the pooled
state is that of the text's end. Padding comes after it and changes neither.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from sfumato.core.pretrained import IDENTIFIED
from sfumato.errors import CapabilityError, ConfigError, with_extra
from sfumato.text import bpe
from sfumato.text.encoders import TextEncoderConfig
from sfumato.text.states import States, TextShape, Tokens
from sfumato.text.tokenizers_folder import for_transformers

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENS = 77
"""Of CLIP."""


class JointConfig(TextEncoderConfig):
    """A transformer that trains with the model, and its vocabulary."""

    trained: ClassVar[bool] = True
    kind: Literal["joint"] = Field("joint", description="Selects an encoder that is trained with the model.")
    width: int = Field(128, ge=1, description="Channels of a token.")
    depth: int = Field(4, ge=1, description="Transformer blocks.")
    heads: int = Field(4, ge=1, description="Attention heads.")
    vocabulary: int = Field(
        1024,
        ge=bpe.BASE,
        description=f"The most tokens: {bpe.BASE} for bytes, start and end, the others are learnt.",
    )
    merges: Annotated[str | None, IDENTIFIED] = Field(
        None,
        description="The tokenizer: its merges, a line each; learnt from captions when a run starts.",
    )
    digest: str | None = Field(None, description="sha256 of the merges; recorded with them.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.width % self.heads:
            near = min((n for n in range(1, self.width + 1) if self.width % n == 0), key=self._far)
            raise ValueError(f"heads: {self.heads} does not divide width={self.width}; the nearest is {near}")
        if self.merges is not None and self.digest not in (None, _digest(self.merges)):
            raise ValueError("digest: is not that of merges; leave both out, so that they are learnt again")
        if self.merges is not None and self.merges.count("\n") + 1 > max(1, self.vocabulary - bpe.BASE):
            raise ValueError(f"merges: more than vocabulary={self.vocabulary} holds; leave them out")
        return self

    @classmethod
    def tiny(cls) -> Self:
        """One block of 8 channels, 8 tokens, and three merges."""
        merges = "t h\nth e\nĠ the"
        return cls(tokens=8, width=8, depth=1, heads=2, vocabulary=272, merges=merges, digest=_digest(merges))

    def shape(self) -> TextShape:
        """As configured."""
        return TextShape(self.tokens or TOKENS, self.width, self.width)

    def build(self) -> JointEncoder:
        """The network, with weights drawn from torch's global generator."""
        return JointEncoder(self)

    def tokenize(self, texts: Sequence[str], network: nn.Module | None) -> Tokens:
        """By the learnt merges. Raises ConfigError if there are none."""
        return bpe.tokens(self._tokenizer(), texts, self.shape().tokens)

    def learnt(self, captions: Callable[[], Iterable[str]]) -> Self:
        """With merges; those that are there stay."""
        merges = bpe.learn(captions(), self.vocabulary) if self.merges is None else self.merges
        return self.model_copy(update={"merges": merges, "digest": _digest(merges)})

    def in_diffusers(self, network: nn.Module) -> tuple[Any, Any]:
        """CLIP's text model, with a tokenizer of the learnt merges."""
        assert isinstance(network, JointEncoder)
        assert self.merges is not None, "it was trained"
        return network.model, for_transformers(bpe.tokenizer_of(self.merges), bpe.END, self.shape().tokens)

    def lengths(self, captions: Sequence[str]) -> list[int] | None:
        """With start and end."""
        return bpe.lengths(self._tokenizer(), captions)

    def _tokenizer(self) -> Tokenizer:
        if self.merges is None:
            raise ConfigError("model.text: the tokenizer has not been learnt; start a run, which learns it")
        return _tokenizer(self.merges)

    def _far(self, heads: int) -> int:
        return abs(heads - self.heads)


class JointEncoder(nn.Module):
    """transformers' text model of CLIP."""

    def __init__(self, config: JointConfig) -> None:
        super().__init__()
        try:
            from transformers import CLIPTextConfig, CLIPTextModel
        except ImportError:
            raise CapabilityError(
                f"a text encoder needs transformers, not installed: {with_extra('text')}"
            ) from None
        self.model = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=config.vocabulary,
                hidden_size=config.width,
                intermediate_size=4 * config.width,
                num_hidden_layers=config.depth,
                num_attention_heads=config.heads,
                max_position_embeddings=config.shape().tokens,
                projection_dim=config.width,
                bos_token_id=bpe.START_ID,
                eos_token_id=bpe.END_ID,
                pad_token_id=bpe.END_ID,
            )
        )

    def forward(self, ids_BT: Tensor, mask_BT: Tensor) -> States:
        """Attention is causal, so that padding needs no mask."""
        found = self.model(input_ids=ids_BT)
        return States(found.last_hidden_state, mask_BT, found.pooler_output)


@lru_cache(maxsize=8)
def _tokenizer(merges: str) -> Tokenizer:
    return bpe.tokenizer_of(merges)


def _digest(merges: str) -> str:
    return hashlib.sha256(merges.encode()).hexdigest()


COMPONENT = JointConfig

"""unCLIP's decoder (DALL-E 2; Ramesh et al. 2022, sec. 2.1): the embedding of an image, as tokens beside
those of the text, steers the model; a prior that trains beside it draws the embedding that belongs to a text.

Embeddings are a column of the data set, computed beforehand (`sfumato precompute --arrays features`). Where
the embedding of a picture is given, samples are its variations (sec. 3.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.core.conditions import Condition
from sfumato.families.diffusion.adapters import Look, Steering
from sfumato.families.diffusion.adapting.further_tokens import FurtherTokens, FurtherTokensConfig
from sfumato.families.diffusion.prior import PriorConfig, unit

EMBEDDING = "embedding"
"""The condition."""
NAME, HERE = "image_embedding", "image_embedding_here"


class EmbeddingConfig(FurtherTokensConfig):
    """Tokens of an image's embedding, and the prior that draws embeddings."""

    needs_base: ClassVar[bool] = False
    names: ClassVar[tuple[str, ...]] = (NAME, HERE)
    kind: Literal["embedding"] = Field("embedding", description="Selects control by an image's embedding.")
    column: str = Field("features", description="The column of the data that holds the embeddings.")
    length: int = Field(ge=1, description="Numbers of an embedding.")
    tokens: int = Field(4, ge=1, description="Tokens that it becomes.")
    dropout: float = Field(
        0.1, ge=0, lt=1, description="Share of embeddings that training leaves out, for image_guidance."
    )
    prior: PriorConfig | None = Field(
        None, description="Trains beside the model and draws the embedding where none is given."
    )
    train: tuple[str, ...] = Field(
        ("*",), description='Patterns over the names of the base\'s tensors that train too; ["*"] is all.'
    )

    def conditions(self, data: DataSpec) -> tuple[Condition, ...]:
        """The embedding, which may be left out."""
        # With a prior of a column of its own: an evaluation is to draw it, not to take the reference's.
        column = self.column if self.prior is None else EMBEDDING
        return (Condition(EMBEDDING, column, "vector", shape=(self.length,)),)

    def inputs(self, rows: Mapping[str, Any], look: Look) -> dict[str, Tensor]:
        """The embedding, and whether there is one."""
        column = next((name for name in (self.column, EMBEDDING) if name in rows), None)
        return {} if column is None else self.shown(unit(rows[column]), look)

    def steering(self) -> Steering | None:
        """By the prior."""
        return None if self.prior is None else Steering(self.prior, EMBEDDING, self.length, self.column)

    def trained(self) -> tuple[str, ...]:
        """What reads the embedding, and the chosen tensors; all of them with `*`."""
        return () if self.train == ("*",) else super().trained()

    def entering(self, width: int) -> EmbeddingTokens:
        """A linear map."""
        return EmbeddingTokens(self, width)

    def problems(self, network: nn.Module) -> list[str]:
        """Besides, a prior whose heads do not divide its width."""
        if found := super().problems(network):
            return found
        if self.prior is not None and self.prior.width % self.prior.heads:
            return [f"model.adapter.prior.heads: {self.prior.heads} does not divide width={self.prior.width}"]
        return []

    def data_problems(self, data: DataSpec) -> list[str]:
        """A column that is missing, or of another length."""
        found = data.columns.get(self.column)
        if found is None or found.kind != "vector":
            has = ", ".join(data.columns)
            mend = "run `sfumato precompute --arrays features`, and name them in data.columns"
            return [f"model.adapter.column: the data has no vectors {self.column!r}, only {has}; {mend}"]
        if tuple(found.shape) != (self.length,):
            return [f"model.adapter.length: {self.length}, but {self.column!r} has {found.shape[0]} numbers"]
        return []

    @classmethod
    def tiny(cls) -> Self:
        """Two tokens, without a prior."""
        return cls(length=3, tokens=2)


class EmbeddingTokens(FurtherTokens):
    """A linear map of the embedding to tokens."""

    def __init__(self, config: EmbeddingConfig, width: int) -> None:
        super().__init__(config.names)
        self._shape = (config.tokens, width)
        self._out = nn.Linear(config.length, config.tokens * width)
        self._none_TD = nn.Parameter(0.02 * torch.randn(config.tokens, width))

    def read(self, shown: Tensor) -> Tensor:
        """Of embeddings [B, E]."""
        tokens_BTD: Tensor = self._out(shown).view(-1, *self._shape)
        return tokens_BTD


COMPONENT = EmbeddingConfig

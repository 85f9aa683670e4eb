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
from sfumato.families.diffusion.adapters import AdapterConfig, Look, Steering, anywhere, unmatched
from sfumato.families.diffusion.prior import PriorConfig, unit
from sfumato.families.diffusion.steering import Entering, core, enter, width_of_tokens
from sfumato.text.states import States

EMBEDDING = "embedding"
"""The condition."""
NAME, HERE = "image_embedding", "image_embedding_here"


class EmbeddingConfig(AdapterConfig):
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
        if column is None:
            return {}
        embedding_BD = unit(rows[column])
        dropped_B = look.dropped(self.dropout)
        here_B = torch.ones(len(embedding_BD), device=embedding_BD.device)
        return {NAME: embedding_BD, HERE: here_B if dropped_B is None else (~dropped_B).float()}

    def steering(self) -> Steering | None:
        """By the prior."""
        return None if self.prior is None else Steering(self.prior, EMBEDDING, self.length, self.column)

    @property
    def droppable(self) -> bool:
        """With dropout."""
        return self.dropout > 0

    def without(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """No embedding."""
        return {name: torch.zeros_like(value) if name == HERE else value for name, value in inputs.items()}

    def trained(self) -> tuple[str, ...]:
        """What reads the embedding, and the chosen tensors; all of them with `*`."""
        return () if self.train == ("*",) else ("*entering.*", *anywhere(self.train))

    def fresh(self) -> tuple[str, ...]:
        """What reads the embedding."""
        return ("*entering.*",)

    def added(self, network: nn.Module) -> nn.Module:
        """With tokens of the embedding beside those of the text."""
        width = width_of_tokens(core(network))
        assert width is not None, "checked among the problems"
        enter(network, EmbeddingTokens(self, width))
        return network

    def problems(self, network: nn.Module) -> list[str]:
        """A network that attends to no tokens; patterns that match nothing."""
        if width_of_tokens(core(network)) is None:
            return ["model.adapter: embedding gives tokens; use a network of texts: unet_text, mmdit, pixart"]
        if self.prior is not None and self.prior.width % self.prior.heads:
            return [f"model.adapter.prior.heads: {self.prior.heads} does not divide width={self.prior.width}"]
        return (
            []
            if self.train == ("*",)
            else unmatched(self.train, list(network.state_dict()), "model.adapter.train")
        )

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


class EmbeddingTokens(Entering):
    """A linear map of the embedding to tokens; learnt ones where there is none."""

    tokens: ClassVar[bool] = True

    def __init__(self, config: EmbeddingConfig, width: int) -> None:
        super().__init__()
        self._shape = (config.tokens, width)
        self._out = nn.Linear(config.length, config.tokens * width)
        self._none_TD = nn.Parameter(0.02 * torch.randn(config.tokens, width))

    def forward(
        self, x_BCHW: Tensor, text: States | None, inputs: Mapping[str, Tensor]
    ) -> tuple[Tensor, States | None]:
        """The states with tokens of the embedding after those of the text."""
        assert text is not None, "a network of texts"
        own_BTD = self._none_TD.expand(len(x_BCHW), -1, -1)
        if NAME in inputs:
            here_B11 = inputs[HERE].view(-1, 1, 1)
            seen_BTD = self._out(inputs[NAME]).view(-1, *self._shape)
            own_BTD = here_B11 * seen_BTD + (1 - here_B11) * own_BTD
        mask_BT = torch.ones(own_BTD.shape[:2], dtype=torch.bool, device=own_BTD.device)
        return x_BCHW, States(
            torch.cat([text.states, own_BTD.to(text.states.dtype)], dim=1),
            torch.cat([text.mask, mask_BT], dim=1),
            text.pooled,
        )


COMPONENT = EmbeddingConfig

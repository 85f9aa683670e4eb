"""A transformer over the codes of a frozen quantised autoencoder."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from sfumato.core.batch import DataSpec
from sfumato.families.autoregressive.code_family import CodeTransformer
from sfumato.families.autoregressive.code_network import CodeNetwork
from sfumato.families.autoregressive.networks import (
    DEFAULT_LABEL_DROPOUT,
    NetworkConfig,
    Parts,
    check_heads,
)


class TransformerConfig(NetworkConfig):
    """A decoder transformer over the codes of a frozen quantised autoencoder (Esser et al. 2021)."""

    of_codes: ClassVar[bool] = True
    kind: Literal["transformer"] = Field("transformer", description="Selects the model of codes.")
    width: int = Field(128, ge=1, description="Channels of the residual stream.")
    layers: int = Field(4, ge=1, description="Blocks of attention and MLP.")
    heads: int = Field(4, ge=1, description="Attention heads, a divisor of the width.")
    label_dropout: float = Field(
        DEFAULT_LABEL_DROPOUT,
        ge=0,
        lt=1,
        description="Share of labels that training drops, which guidance needs.",
    )

    @model_validator(mode="after")
    def _divides(self) -> Self:
        check_heads(self.width, self.heads)
        return self

    @property
    def dropped(self) -> float:
        """As set."""
        return self.label_dropout

    @classmethod
    def tiny(cls) -> Self:
        """Two blocks of 8 channels."""
        return cls(width=8, layers=2, heads=2)

    def build(self, parts: Parts, data: DataSpec) -> CodeTransformer:
        """A model of codes."""
        stage = parts.stage
        assert stage is not None, "problems() asks for it"
        return CodeTransformer(
            parts,
            stage,
            self.label_dropout,
            lambda: CodeNetwork(
                stage.spec.num_codes,
                math.prod(stage.spec.latent[1:]),
                parts.classes + 1,
                width=self.width,
                layers=self.layers,
                heads=self.heads,
            ),
        )


COMPONENT = TransformerConfig

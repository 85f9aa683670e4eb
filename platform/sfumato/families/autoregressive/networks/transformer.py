"""A transformer over the codes of a frozen quantised autoencoder."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, Self

from pydantic import Field

from sfumato.core.batch import DataSpec
from sfumato.families.autoregressive.code_family import CodeTransformer
from sfumato.families.autoregressive.layers.code_network import CodeNetwork
from sfumato.families.autoregressive.networks import ClassConditional, Parts


class TransformerConfig(ClassConditional):
    """A decoder transformer over the codes of a frozen quantised autoencoder (Esser et al. 2021)."""

    of_codes: ClassVar[bool] = True
    caches: ClassVar[bool] = True
    kind: Literal["transformer"] = Field("transformer", description="Selects the model of codes.")

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

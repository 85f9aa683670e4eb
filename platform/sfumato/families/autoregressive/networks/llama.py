"""LlamaGen (Sun et al. 2024): a Llama of the codes of a frozen quantised autoencoder."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field

from sfumato.core.batch import DataSpec
from sfumato.families.autoregressive.code_family import CodeTransformer
from sfumato.families.autoregressive.layers.llama_network import LlamaNetwork
from sfumato.families.autoregressive.networks import ClassConditional, Parts


class LlamaConfig(ClassConditional):
    """A transformer with RMSNorm, SwiGLU and rotary positions in two dimensions (Sun et al. 2024)."""

    of_codes: ClassVar[bool] = True
    caches: ClassVar[bool] = True
    head_multiple: ClassVar[int] = 4
    kind: Literal["llama"] = Field("llama", description="Selects LlamaGen's transformer.")
    width: int = Field(128, ge=4, description="Channels of the residual stream.")
    heads: int = Field(4, ge=1, description="Attention heads; each has a multiple of 4 channels.")
    multiple: int = Field(
        32,
        ge=1,
        description="The MLP's hidden channels, 8/3 of the width, are rounded up to this (LlamaGen: 256).",
    )

    @classmethod
    def tiny(cls) -> Self:
        """Two blocks of 8 channels."""
        return cls(width=8, layers=2, heads=2, multiple=4)

    def build(self, parts: Parts, data: DataSpec) -> CodeTransformer:
        """A model of codes."""
        stage = parts.stage
        assert stage is not None, "problems() asks for it"
        return CodeTransformer(
            parts,
            stage,
            self.label_dropout,
            lambda: LlamaNetwork(
                stage.spec.num_codes,
                stage.spec.latent[1:],
                parts.classes + 1,
                width=self.width,
                layers=self.layers,
                heads=self.heads,
                multiple=self.multiple,
            ),
        )


COMPONENT = LlamaConfig

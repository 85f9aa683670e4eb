"""Chosen layers: some of a pretrained network's own tensors train, all others keep their values.

`train: ["attn2.to_k*", "attn2.to_v*"]`, keys and values of the attention to texts, is the choice of Custom
Diffusion (Kumari et al. 2023, sec. 3.1).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from sfumato.families.diffusion.adapters import AdapterConfig, anywhere, unmatched


class LayersConfig(AdapterConfig):
    """Some of the network's own layers."""

    kind: Literal["layers"] = Field("layers", description="Selects the training of chosen layers.")
    train: tuple[str, ...] = Field(
        min_length=1, description='Patterns over the names of tensors that train, such as ["*attn2*"].'
    )

    def trained(self) -> tuple[str, ...]:
        """The given patterns."""
        return anywhere(self.train)

    def problems(self, network: nn.Module) -> list[str]:
        """Patterns that match no tensor."""
        return unmatched(self.train, list(network.state_dict()), "model.adapter.train")

    @classmethod
    def tiny(cls) -> LayersConfig:
        """The attention."""
        return cls(train=("*attentions*",))


COMPONENT = LayersConfig

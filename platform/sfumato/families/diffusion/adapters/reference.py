"""A reference picture, which need not lie as the drawn one does: a small network that trains turns it into
tokens, which stand beside those of the text (Jia et al. 2023, "Taming Encoder", sec. 3.2; Yang et al. 2023,
Paint by Example, sec. 3.2, with a frozen encoder).

Without a reference, learnt tokens stand in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.core.conditions import Condition
from sfumato.families.diffusion.adapters import Look
from sfumato.families.diffusion.adapting.further_tokens import FurtherTokens, FurtherTokensConfig

NAME, HERE = "reference", "reference_here"


class ReferenceConfig(FurtherTokensConfig):
    """Tokens of another picture."""

    names: ClassVar[tuple[str, ...]] = (NAME, HERE)
    kind: Literal["reference"] = Field("reference", description="Selects control by a reference picture.")
    column: str = Field("reference", description="The column of the data that holds the other picture.")
    channels: int = Field(3, ge=1, description="Channels of that picture.")
    side: int = Field(4, ge=1, description="The picture becomes side x side tokens.")
    width: int = Field(64, ge=8, multiple_of=8, description="Channels of the network that reads it.")

    def conditions(self, data: DataSpec) -> tuple[Condition, ...]:
        """The picture, which may be left out."""
        column = data.columns.get(self.column)
        shape = (self.channels, data.height, data.width) if column is None else tuple(column.shape)
        return (Condition(NAME, self.column, "image", shape=shape),)

    def inputs(self, rows: Mapping[str, Any], look: Look) -> dict[str, Tensor]:
        """The picture, and whether there is one."""
        return self.shown(rows[self.column], look) if self.column in rows else {}

    def entering(self, width: int) -> ReferenceTokens:
        """A small network."""
        return ReferenceTokens(self, width)

    def data_problems(self, data: DataSpec) -> list[str]:
        """A column that is missing, or has other channels."""
        found = data.columns.get(self.column)
        if found is None or found.kind != "image" or found.shape[0] != self.channels:
            has = ", ".join(data.columns)
            return [
                (
                    f"model.adapter.column: the data has no image {self.column!r} of {self.channels} channels"
                    f", only {has}; name it in data.columns, and set channels"
                )
            ]
        return []

    @classmethod
    def tiny(cls) -> Self:
        """Of the images themselves."""
        return cls(column="image", channels=1, side=2, width=8)


class ReferenceTokens(FurtherTokens):
    """Two halvings and two layers, pooled to a grid, with places."""

    def __init__(self, config: ReferenceConfig, width: int) -> None:
        super().__init__(config.names)
        inner, count = config.width, config.side**2
        self._read = nn.Sequential(
            nn.Conv2d(config.channels, inner, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(inner, inner, 3, stride=2, padding=1),
            nn.GroupNorm(8, inner),
            nn.SiLU(),
            nn.Conv2d(inner, inner, 3, stride=2, padding=1),
            nn.GroupNorm(8, inner),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(config.side),
        )
        self._out = nn.Linear(inner, width)
        self._norm = nn.LayerNorm(width)
        self._place_TD = nn.Parameter(0.02 * torch.randn(count, width))
        self._none_TD = nn.Parameter(0.02 * torch.randn(count, width))

    def read(self, shown: Tensor) -> Tensor:
        """Of pictures [B, C, H, W]."""
        tokens_BTD: Tensor = self._norm(self._out(self._read(shown).flatten(2).transpose(1, 2)))
        return tokens_BTD + self._place_TD


COMPONENT = ReferenceConfig

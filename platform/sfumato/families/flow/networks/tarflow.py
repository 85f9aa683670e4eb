"""TarFlow (Zhai et al. 2024): autoregressive transformers over patches, their order reversed by turns."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from sfumato.core.batch import DataSpec
from sfumato.families.flow.bijection import Bijection
from sfumato.families.flow.causal_map import CausalMap
from sfumato.families.flow.levels import Level, Shape, Squeeze, squeezed
from sfumato.families.flow.networks import NetworkConfig


class TarFlowConfig(NetworkConfig):
    """TarFlow (Zhai et al. 2024): each map is a causal transformer over patches."""

    kind: Literal["tarflow"] = Field("tarflow", description="Selects TarFlow.")
    patch: int = Field(2, ge=1, description="P: side of a patch, which is one token.")
    width: int = Field(128, ge=1, description="Ch: channels of the transformers.")
    maps: int = Field(4, ge=1, description="T: maps, each a transformer, whose order of tokens alternates.")
    layers: int = Field(2, ge=1, description="K: blocks of a transformer.")
    heads: int = Field(2, ge=1, description="Attention heads, a divisor of the width (paper: width / 64).")
    label_dropout: float = Field(
        0.1, ge=0, lt=1, description="Share of labels that training drops, which guidance needs."
    )

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.width % self.heads:
            near = max(1, round(self.width / self.heads)) * self.heads
            raise ValueError(
                f"width: {self.width} is no multiple of heads={self.heads}; the nearest is {near}"
            )
        return self

    @property
    def dropped(self) -> float:
        """As set."""
        return self.label_dropout

    @classmethod
    def tiny(cls) -> Self:
        """Two maps of one block over 4x4 patches."""
        return cls(patch=4, width=8, maps=2, layers=1, heads=2)

    def build_levels(self, shape: Shape, classes: int) -> list[Level]:
        """One level without a split."""
        tokens = squeezed(shape, self.patch)
        maps: list[Bijection] = [
            CausalMap(
                tokens,
                classes + 1 if classes else 0,
                width=self.width,
                layers=self.layers,
                heads=self.heads,
                backwards=turn % 2 == 1,
            )
            for turn in range(self.maps)
        ]
        return [Level([Squeeze(self.patch), *maps], tokens, classes, last=True, learned=False)]

    def problems(self, data: DataSpec) -> list[str]:
        """Sides that patches do not fill, and images of a single patch."""
        found = [
            f"model.network.patch: {self.patch} does not divide the {name} of {side}; "
            f"use {_nearest(side, self.patch)}"
            for name, side in (("height", data.height), ("width", data.width))
            if side % self.patch
        ]
        if not found and data.height * data.width == self.patch**2:
            found.append(
                f"model.network.patch: {self.patch} makes one token of an image; "
                f"use {max(each for each in range(1, self.patch) if self.patch % each == 0)}"
            )
        return found


def _nearest(side: int, patch: int) -> int:
    """The divisor of `side` nearest to `patch`, the smaller of two."""
    return min((each for each in range(1, side + 1) if side % each == 0), key=lambda each: abs(each - patch))


COMPONENT = TarFlowConfig

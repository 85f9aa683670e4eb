"""PixelCNN++ (Salimans, Karpathy, Chen, Kingma 2017): a causal U-Net over pixels."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field

from sfumato.core.batch import DataSpec
from sfumato.families.autoregressive.layers.shifted import ShiftedNetwork
from sfumato.families.autoregressive.outputs import OUTPUTS, OutputConfig
from sfumato.families.autoregressive.outputs.logistic import LogisticConfig
from sfumato.families.autoregressive.pixel_family import PixelNetworkConfig
from sfumato.families.autoregressive.sampling import SamplingConfig


class PixelCnnPpConfig(PixelNetworkConfig):
    """PixelCNN++ (Salimans et al. 2017): two streams, resolutions, short cuts, dropout."""

    kind: Literal["pixelcnnpp"] = Field("pixelcnnpp", description="Selects PixelCNN++.")
    width: int = Field(32, ge=1, description="Channels of a stream (paper: 160).")
    blocks: int = Field(2, ge=1, description="Residual blocks of a level (paper: 5).")
    levels: int = Field(2, ge=1, description="Levels; every level but the first halves the side (paper: 3).")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of features dropped in a block (paper: 0.5).")
    output: Annotated[OutputConfig, OUTPUTS] = Field(
        LogisticConfig(components=10), description="Distribution of a pixel given those before it."
    )

    @classmethod
    def tiny(cls) -> Self:
        """Two levels of one block."""
        return cls(width=4, blocks=1, output=LogisticConfig.tiny())

    def couples_rows(self) -> bool:
        """Dropout draws for all rows at once."""
        return self.dropout > 0

    def network(self, data: DataSpec, classes: int) -> ShiftedNetwork:
        """Both streams."""
        return ShiftedNetwork(
            data.channels,
            self.output.size(data.channels),
            width=self.width,
            blocks=self.blocks,
            levels=self.levels,
            classes=classes,
            dropout=self.dropout,
        )

    def problems(self, data: DataSpec, sampling: SamplingConfig) -> list[str]:
        """Sides that the levels cannot halve."""
        factor = 1 << (self.levels - 1)
        return super().problems(data, sampling) + [
            f"model.network.levels: {self.levels} levels need a {name} that is a multiple of {factor}, got "
            f"{side}; use {min(self.levels, (side & -side).bit_length())}"
            for name, side in (("height", data.height), ("width", data.width))
            if side % factor
        ]


COMPONENT = PixelCnnPpConfig

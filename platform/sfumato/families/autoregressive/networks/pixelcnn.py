"""Gated PixelCNN: the distribution of every pixel given those before it in raster order."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.families.autoregressive.drawing.raster import draw_image
from sfumato.families.autoregressive.layers.gated import PixelCnnNetwork
from sfumato.families.autoregressive.outputs import OUTPUTS, OutputConfig
from sfumato.families.autoregressive.outputs.logistic import LogisticConfig
from sfumato.families.autoregressive.pixel_family import DrawPixel, PixelNetworkConfig


class PixelCnnConfig(PixelNetworkConfig):
    """Gated PixelCNN (van den Oord et al. 2016): pixels in raster order."""

    kind: Literal["pixelcnn"] = Field("pixelcnn", description="Selects the model of pixels.")
    width: int = Field(64, ge=1, description="Channels of both stacks.")
    layers: int = Field(8, ge=1, description="Gated blocks.")
    kernel: int = Field(3, ge=3, description="Side of the convolutions, odd.")
    head_width: int = Field(64, ge=1, description="Channels of the output layers.")
    output: Annotated[OutputConfig, OUTPUTS] = Field(
        LogisticConfig(), description="Distribution of a pixel given those before it."
    )

    @model_validator(mode="after")
    def _odd(self) -> Self:
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel: {self.kernel} is even; use {self.kernel + 1}")
        return self

    @classmethod
    def tiny(cls) -> Self:
        """Two blocks of 4 channels."""
        return cls(width=4, layers=2, head_width=4, output=LogisticConfig.tiny())

    def network(self, data: DataSpec, classes: int) -> PixelCnnNetwork:
        """Gated blocks and an output layer."""
        return PixelCnnNetwork(
            data.channels,
            self.output.size(data.channels),
            width=self.width,
            layers=self.layers,
            kernel=self.kernel,
            head_width=self.head_width,
            classes=classes,
        )

    def draw_image(
        self,
        network: nn.Module,
        shape: tuple[int, int, int],
        rows: int,
        label_B: Tensor | None,
        draw: DrawPixel,
    ) -> Tensor:
        """Computes nothing twice (`raster.py`)."""
        assert isinstance(network, PixelCnnNetwork)
        return draw_image(network, shape, rows, label_B, draw)


COMPONENT = PixelCnnConfig

"""The Image Transformer (Parmar et al. 2018): a decoder transformer over pixels with local attention."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.families.autoregressive.layers.local_attention import (
    Cache,
    ImageTransformer,
    Layout,
    everything,
    in_blocks,
    in_rows,
)
from sfumato.families.autoregressive.networks import check_heads
from sfumato.families.autoregressive.outputs import OUTPUTS, OutputConfig
from sfumato.families.autoregressive.outputs.logistic import LogisticConfig
from sfumato.families.autoregressive.pixel_family import DrawPixel, PixelNetworkConfig
from sfumato.families.autoregressive.sampling import SamplingConfig

_Pair = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
_Margin = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]


class ImageTransformerConfig(PixelNetworkConfig):
    """Image Transformer (Parmar et al. 2018): full attention, or local in one or two dimensions."""

    kind: Literal["image_transformer"] = Field("image_transformer", description="Selects this transformer.")
    width: int = Field(64, ge=1, description="Channels of the residual stream.")
    layers: int = Field(4, ge=1, description="Blocks of attention and MLP.")
    heads: int = Field(4, ge=1, description="Attention heads, a divisor of the width.")
    attention: Literal["full", "local1d", "local2d"] = Field(
        "local1d", description="Which of the pixels before it a pixel sees."
    )
    block: int = Field(64, ge=1, description="local1d: pixels of a block, which divide those of an image.")
    memory: int = Field(64, ge=0, description="local1d: pixels before the block that it sees as well.")
    block2d: _Pair = Field(
        (4, 4), description="local2d: height and width of a block; they divide the image's."
    )
    memory2d: _Margin = Field(
        (4, 4), description="local2d: rows above the block, and columns on both sides, that it sees as well."
    )
    output: Annotated[OutputConfig, OUTPUTS] = Field(
        LogisticConfig(), description="Distribution of a pixel given those before it."
    )

    @model_validator(mode="after")
    def _divides(self) -> Self:
        check_heads(self.width, self.heads)
        return self

    @classmethod
    def tiny(cls) -> Self:
        """One block of 4 channels with two-dimensional attention."""
        return cls(
            width=4,
            layers=1,
            heads=1,
            attention="local2d",
            memory2d=(2, 2),
            output=LogisticConfig.tiny(),
        )

    @property
    def completes(self) -> bool:
        """Blocks of two dimensions are not drawn in raster order."""
        return self.attention != "local2d"

    def layout(self, data: DataSpec) -> Layout:
        """The order of the pixels, and what each sees."""
        if self.attention == "full":
            return everything(data.height, data.width)
        if self.attention == "local1d":
            return in_rows(data.height, data.width, self.block, self.memory)
        return in_blocks(data.height, data.width, self.block2d, self.memory2d)

    def network(self, data: DataSpec, classes: int) -> ImageTransformer:
        """A transformer of the image's pixels."""
        return ImageTransformer(
            data.shape,
            self.output.size(data.channels),
            self.layout(data),
            width=self.width,
            layers=self.layers,
            heads=self.heads,
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
        """Pixel after pixel in the network's order, keys and values kept."""
        assert isinstance(network, ImageTransformer)
        x_BCHW = torch.zeros(rows, *shape, device=network.start.device)
        caches: list[Cache] = []
        pixel_B1C: Tensor | None = None
        for place, number in enumerate(network.order.tolist()):
            row, column = divmod(number, shape[2])
            parameters = network.step(pixel_B1C, place, label_B, caches, rows)
            drawn = draw(parameters, row, column)[:, :, 0, 0]
            x_BCHW[:, :, row, column] = drawn
            pixel_B1C = drawn[:, None]
        return x_BCHW

    def problems(self, data: DataSpec, sampling: SamplingConfig) -> list[str]:
        """Blocks that do not divide the image."""
        found = super().problems(data, sampling)
        height, width = data.height, data.width
        if self.attention == "local1d":
            found += _undivided("block", self.block, "pixels", height * width)
        if self.attention == "local2d":
            found += _undivided("block2d", self.block2d[0], "height", height)
            found += _undivided("block2d", self.block2d[1], "width", width)
        return found


def _undivided(field: str, block: int, what: str, total: int) -> list[str]:
    if total % block == 0:
        return []
    near = min((each for each in range(1, total + 1) if total % each == 0), key=lambda e: abs(e - block))
    return [f"model.network.{field}: {block} does not divide the image's {what}, {total}; use {near}"]


COMPONENT = ImageTransformerConfig

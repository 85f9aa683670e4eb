"""Outpainting: the image is set on a canvas of the model's size, and what surrounds it is painted as by
`inpaint`, with any model or with one that was trained for it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sfumato.core.config import Config
from sfumato.editing.operations import Block, Operation
from sfumato.editing.operations.inpaint import Inpaint
from sfumato.sampling.generator import Generator


class Outpaint(Operation):
    """Paint around an image that is smaller than the model's."""

    any_size: ClassVar[bool] = True
    gives: ClassVar[tuple[str, ...]] = Inpaint.gives
    kind: Literal["outpaint"] = Field("outpaint", description="Selects painting around a smaller image.")
    x: float = Field(0.5, ge=0, le=1, description="Where the image is: 0 at the left, 1 at the right.")
    y: float = Field(0.5, ge=0, le=1, description="The same from the top, 0, to the bottom, 1.")
    resample: int = Field(5, ge=1, description="As of inpaint.")

    def problems(self, model: Generator, options: Config) -> list[str]:
        """Those of inpaint."""
        return self._inpaint.problems(model, options)

    def image_problems(self, model: Generator, shape: tuple[int, ...]) -> list[str]:
        """Other channels; an image that leaves nothing to paint, or does not fit."""
        channels, height, width = shape
        data = model.data
        if channels != data.channels:
            return [f"IMAGE: has {channels} channels, the model {data.channels}; convert it"]
        if height > data.height or width > data.width or (height, width) == (data.height, data.width):
            whole = f"{data.width}x{data.height}"
            return [f"IMAGE: is {width}x{height}; outpaint sets a smaller one on the model's {whole}"]
        return []

    def edited(self, model: Generator, block: Block) -> Tensor:
        """The canvas, with the image where it was set."""
        height, width = block.images.shape[-2:]
        down, across = model.data.height - height, model.data.width - width
        top, left = round(down * self.y), round(across * self.x)
        around = (left, across - left, top, down - top)
        canvas = F.pad(block.images, around, mode="replicate")
        mask = F.pad(torch.zeros_like(block.images[:, :1]), around, value=1.0)
        return self._inpaint.edited(model, replace(block, images=canvas, mask=mask))

    @property
    def _inpaint(self) -> Inpaint:
        return Inpaint(resample=self.resample)


COMPONENT = Outpaint

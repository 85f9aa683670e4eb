"""Super-resolution by a model trained for it (`adapter: upscale`), also of images larger than those that it
was trained on: in tiles that overlap, each of which sees its own part, joined by weights that fall to the
tiles' edges (as in the tiled decoding of diffusers' autoencoders).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from sfumato.core.conditions import SMALL
from sfumato.core.config import Config
from sfumato.editing.operations import Block, Operation
from sfumato.sampling.generator import Generator


class Upscale(Operation):
    """Enlarge."""

    any_size: ClassVar[bool] = True
    gives: ClassVar[tuple[str, ...]] = (SMALL,)
    kind: Literal["upscale"] = Field("upscale", description="Selects super-resolution.")
    overlap: float = Field(
        0.25, ge=0, le=0.75, description="Share of a tile's side that it has in common with the next."
    )

    def problems(self, model: Generator, options: Config) -> list[str]:
        """A model that was not trained for it."""
        if SMALL in {condition.name for condition in model.conditions}:
            return []
        return ["--by upscale: needs a model trained to enlarge; train one with model.adapter.kind=upscale"]

    def image_problems(self, model: Generator, shape: tuple[int, ...]) -> list[str]:
        """Other channels, or less than one tile."""
        channels, height, width = shape
        factor = factor_of(model)
        least = (model.data.height // factor, model.data.width // factor)
        if channels != model.data.channels:
            return [f"IMAGE: has {channels} channels, the model {model.data.channels}; convert it"]
        if height < least[0] or width < least[1]:
            return [
                f"IMAGE: is {width}x{height}; the model enlarges images of at least {least[1]}x{least[0]}"
            ]
        return []

    def edited(self, model: Generator, block: Block) -> Tensor:
        """The images, larger by the model's factor."""
        factor = factor_of(model)
        images = block.images
        tile_h, tile_w = model.data.height // factor, model.data.width // factor
        height, width = images.shape[-2:]
        total = images.new_zeros(*images.shape[:2], height * factor, width * factor)
        weights = torch.zeros_like(total[:1, :1])
        fade = _ramp(model.data.height, self.overlap).view(-1, 1) * _ramp(model.data.width, self.overlap)
        fade = fade.to(images.device)
        for top in _starts(height, tile_h, self.overlap):
            for left in _starts(width, tile_w, self.overlap):
                part = images[..., top : top + tile_h, left : left + tile_w]
                seen = part.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
                request = replace(block.request, conditions={**block.request.conditions, SMALL: seen})
                drawn = model.family.sample(model.nets, request, model.progress, block.rng)
                at = (
                    ...,
                    slice(top * factor, (top + tile_h) * factor),
                    slice(left * factor, (left + tile_w) * factor),
                )
                total[at] += fade * drawn
                weights[at] += fade
        return total / weights


def factor_of(model: Generator) -> int:
    """How many times larger the model's images are than what it sees of them."""
    adapter: Any = getattr(model.config, "adapter", None)
    return int(getattr(adapter, "factor", 1))


def _starts(side: int, tile: int, overlap: float) -> Iterator[int]:
    """Where tiles begin: as far apart as the overlap allows, the last at the end."""
    step = max(1, round(tile * (1 - overlap)))
    yield from range(0, side - tile, step)
    yield side - tile


def _ramp(side: int, overlap: float) -> Tensor:
    """Weights of a tile's rows: 1 in its middle, falling towards both ends over the overlap."""
    place = torch.arange(side) + 0.5
    reach = max(1.0, side * overlap)
    return (torch.minimum(place, side - place) / reach).clamp(max=1.0)


COMPONENT = Upscale

"""Image to image by noise and denoising (SDEdit; Meng et al. 2022, sec. 3).

The image gets the noise of a level of the model's sampler, which then runs from there. Strength 0 is the
image itself; strength 1 is a sample of the model from the same noise.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from sfumato.core.config import Config
from sfumato.editing.operations import Block, Operation, noise_of, path_of, path_problems
from sfumato.sampling.generator import Generator


class Img2Img(Operation):
    """Start from an image instead of from noise."""

    kind: Literal["img2img"] = Field("img2img", description="Selects editing by noise and denoising.")
    strength: float = Field(
        0.6, ge=0, le=1, description="Share of the sampler's steps that run: 0 keeps the image, 1 forgets it."
    )

    def problems(self, model: Generator, options: Config) -> list[str]:
        """A model without a path."""
        return path_problems(model)

    def edited(self, model: Generator, block: Block) -> Tensor:
        """The images after the last steps of the sampler."""
        path = path_of(model, block)
        first = round(path.steps * (1 - self.strength))
        if first == path.steps:
            return block.images
        noise = noise_of(path, block)
        begun = path.noised(path.encode(block.images), first, noise) if first else noise
        return path.decode(path.sample(begun, first))


COMPONENT = Img2Img

"""Inpainting and outpainting with any model: what is known replaces what is drawn at every noise level, and
steps are taken back and repeated so that the two agree (RePaint; Lugmayr et al. 2022, alg. 1).

A step draws as in `editing.ancestral`, and a step back adds the noise again: x = (a / a') x' + sqrt(q) z.
Pixels outside the mask are the image's. A model that was trained to inpaint sees mask and image as its
conditions, and draws once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from sfumato.core.conditions import KNOWN, MASK
from sfumato.core.config import Config
from sfumato.core.paths import Path
from sfumato.editing.ancestral import mean_and_deviation, spread
from sfumato.editing.operations import Block, Operation, noise_of, on_grid, path_of, path_problems
from sfumato.sampling.generator import Generator


class Inpaint(Operation):
    """Repaint what the mask shows."""

    masked: ClassVar[bool] = True
    gives: ClassVar[tuple[str, ...]] = (KNOWN, MASK)
    kind: Literal["inpaint"] = Field("inpaint", description="Selects the replacement of a masked part.")
    resample: int = Field(
        5, ge=1, description="How often each step is taken: above 1, what is drawn fits what is known better."
    )

    def problems(self, model: Generator, options: Config) -> list[str]:
        """A model without a path that was not trained for it either."""
        return [] if trained_for(model) else path_problems(model)

    def edited(self, model: Generator, block: Block) -> Tensor:
        """The images with other content inside the mask."""
        assert block.mask is not None, "it is masked"
        if trained_for(model):
            seen = {KNOWN: block.images, MASK: 2 * block.mask - 1}
            request = replace(block.request, conditions={**block.request.conditions, **seen})
            drawn = model.family.sample(model.nets, request, model.progress, block.rng)
            return block.mask * drawn + (1 - block.mask) * block.images
        path = path_of(model, block)
        known, changes = path.encode(block.images), on_grid(block.mask, path.shape)
        x = repainted(path, known, changes, lambda: noise_of(path, block), self.resample)
        return block.mask * path.decode(x) + (1 - block.mask) * block.images


def trained_for(model: Generator) -> bool:
    """Whether the model's own conditions are an image and its mask."""
    return {KNOWN, MASK} <= {condition.name for condition in model.conditions}


def repainted(
    path: Path, known: Tensor, changes: Tensor, draw: Callable[[], Tensor], resample: int
) -> Tensor:
    """x_0 that agrees with `known` where `changes` is 0, and is drawn where it is 1; `draw` gives noise."""
    x = path.levels[0].noise * draw()
    for at in range(path.steps):
        repeats = resample if at + 1 < path.steps else 1
        for turn in range(repeats):
            drawn, kept = _stepped(path, x, at, draw()), path.noised(known, at + 1, draw())
            x = changes * drawn + (1 - changes) * kept
            if turn + 1 < repeats:
                x = _back(path, x, at, draw())
    return x


def _stepped(path: Path, x: Tensor, at: int, z: Tensor) -> Tensor:
    """x at the next level, drawn."""
    mean, deviation = mean_and_deviation(path, x, at)
    return mean + deviation * z


def _back(path: Path, x: Tensor, at: int, z: Tensor) -> Tensor:
    """x at level `at` again, from the next."""
    ratio = path.levels[at].signal / path.levels[at + 1].signal
    return ratio * x + math.sqrt(spread(path, at)) * z


COMPONENT = Inpaint

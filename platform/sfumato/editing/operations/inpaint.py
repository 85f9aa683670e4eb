"""Inpainting and outpainting with any model: what is known replaces what is drawn at every noise level, and
steps are taken back and repeated so that the two agree (RePaint; Lugmayr et al. 2022, alg. 1).

From level i to i + 1, with signals a, a' and noises s, s', a step draws (Ho et al. 2020, eq. 7)

    x' = a' x_0 + sqrt(s'^2 - v) eps + sqrt(v) z,   v = s'^2 q / s^2,   q = s^2 - (a / a')^2 s'^2

and a step back adds the noise again: x = (a / a') x' + sqrt(q) z. Pixels outside the mask are the image's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from sfumato.core.config import Config
from sfumato.core.paths import Path
from sfumato.editing.operations import Block, Operation, noise_of, on_grid, path_of, path_problems
from sfumato.sampling.generator import Generator


class Inpaint(Operation):
    """Repaint what the mask shows."""

    masked: ClassVar[bool] = True
    kind: Literal["inpaint"] = Field("inpaint", description="Selects the replacement of a masked part.")
    resample: int = Field(
        5, ge=1, description="How often each step is taken: above 1, what is drawn fits what is known better."
    )

    def problems(self, model: Generator, options: Config) -> list[str]:
        """A model without a path."""
        return path_problems(model)

    def edited(self, model: Generator, block: Block) -> Tensor:
        """The images with other content inside the mask."""
        assert block.mask is not None, "it is masked"
        path = path_of(model, block)
        known, changes = path.encode(block.images), on_grid(block.mask, path.shape)
        x = repainted(path, known, changes, lambda: noise_of(path, block), self.resample)
        return block.mask * path.decode(x) + (1 - block.mask) * block.images


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


def _spread(path: Path, at: int) -> float:
    """q, the variance that the noise of level `at` has beyond that of the next."""
    (a, s, _), (a_next, s_next, _) = path.levels[at], path.levels[at + 1]
    return max(0.0, s**2 - (a / a_next) ** 2 * s_next**2)


def _stepped(path: Path, x: Tensor, at: int, z: Tensor) -> Tensor:
    """x at the next level, drawn."""
    (_, s, _), (a_next, s_next, _) = path.levels[at], path.levels[at + 1]
    image = path.image(x, at)
    eps = (x - path.levels[at].signal * image) / s
    variance = s_next**2 * _spread(path, at) / s**2
    return a_next * image + math.sqrt(max(0.0, s_next**2 - variance)) * eps + math.sqrt(variance) * z


def _back(path: Path, x: Tensor, at: int, z: Tensor) -> Tensor:
    """x at level `at` again, from the next."""
    ratio = path.levels[at].signal / path.levels[at + 1].signal
    return ratio * x + math.sqrt(_spread(path, at)) * z


COMPONENT = Inpaint

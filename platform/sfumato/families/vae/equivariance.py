"""Equivariance of latents (EQ-VAE: Kouzelis, Kakogeorgiou, Gidaris, Komodakis 2025, eq. 5).

    L + weight |t(x) - D(t(E(x)))|,    t = a turn by a multiple of 90 degrees, then a scale in [1/4, 1)

A latent that is turned and made smaller then decodes to the picture that is turned and made smaller, so that
latents are smoother and easier to learn for the model on top of them.

t is the same for all rows of a step, since its scale decides their shape, and follows from the images seen.
The paper has this term in place of the plain one in half of the steps; here both count in every step.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from sfumato.core.progress import Progress
from sfumato.core.seeds import derive

LEAST = 0.25
"""The smallest scale."""


@dataclass(frozen=True, slots=True)
class Change:
    """A turn by `turns` * 90 degrees, after which a latent has the size (height, width)."""

    turns: int
    size: tuple[int, int]
    factor: int
    """Pixels of the picture for each place of the latent, along a side."""

    @classmethod
    def at(cls, progress: Progress, grid: tuple[int, int], factor: int) -> Change:
        """The change of the step that starts at `progress`, for latents of a grid (height, width)."""
        drawn = derive("equivariance", progress.images)
        turns, part = drawn % 4, drawn // 4 % 1024 / 1024
        sides = grid if turns % 2 == 0 else (grid[1], grid[0])
        scale = LEAST + (1 - LEAST) * part
        height, width = (max(1, round(scale * side)) for side in sides)
        return cls(turns, (height, width), factor)

    def of_latent(self, z_BChw: Tensor) -> Tensor:
        """The latent, changed."""
        return _resized(z_BChw.rot90(self.turns, (2, 3)), self.size)

    def of_image(self, x_BCHW: Tensor) -> Tensor:
        """The picture, changed in the same way."""
        height, width = self.size
        return _resized(x_BCHW.rot90(self.turns, (2, 3)), (height * self.factor, width * self.factor))


def _resized(x_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    if x_BCHW.shape[2:] == size:
        return x_BCHW
    return F.interpolate(x_BCHW.float(), size, mode="bilinear", antialias=True)

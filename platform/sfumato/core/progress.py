"""Where training stands, in images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training stands. `images` counts the real images read; it is the unit of all schedules.

    `batch` is the number of images that one step reads: the global batch times the most repeats of any phase.
    `state` holds the family's small values that all ranks agree on; comparisons ignore it.
    """

    step: int
    images: int
    total_images: int
    batch: int
    state: Mapping[str, Tensor] = field(default_factory=dict, compare=False)

    @classmethod
    def at(cls, images: int) -> Self:
        """The end of a training of which only the number of images is known, counted as one per step."""
        return cls(step=images, images=images, total_images=images, batch=1)

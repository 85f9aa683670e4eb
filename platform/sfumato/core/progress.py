"""Where training stands, in images."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training stands. `images` counts the real images read; it is the unit of all schedules.

    `batch` is how many images one step reads: the global batch times the most repeats of any phase.
    """

    step: int
    images: int
    total_images: int
    batch: int

"""Many small images as one picture that a person can look at."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from sfumato.errors import ConfigError
from sfumato.sampling.pixels import Images

SMALLEST_TILE = 48
GAP = 2


def to_pil(image_HWC: Images) -> Image.Image:
    """One uint8 image [H, W, C] with 1 (grey), 3 (RGB) or 4 (RGBA) channels.

    Raises ConfigError for any other number of channels, which has no picture.
    """
    channels = image_HWC.shape[-1]
    if channels not in (1, 3, 4):
        raise ConfigError(f"images with {channels} channels cannot be shown; 1, 3 or 4 can")
    return Image.fromarray(image_HWC[..., 0] if channels == 1 else image_HWC)


def image_grid(
    images_NHWC: Images, *, columns: int | None = None, smallest: int = SMALLEST_TILE
) -> Image.Image:
    """The images row by row on a grid, a near-square one unless `columns` is given.

    Images whose shorter side is less than `smallest` are enlarged by a whole factor, without smoothing.
    """
    num, height, width, channels = images_NHWC.shape
    if num == 0:
        raise ValueError("a grid needs at least one image")
    columns = min(num, columns or math.ceil(math.sqrt(num)))
    rows = -(-num // columns)
    scale = max(1, -(-smallest // min(height, width)))
    tiles = images_NHWC.repeat(scale, axis=1).repeat(scale, axis=2)
    step_y, step_x = height * scale + GAP, width * scale + GAP
    canvas = np.full((rows * step_y + GAP, columns * step_x + GAP, channels), 255, np.uint8)
    for index, tile in enumerate(tiles):
        top, left = GAP + index // columns * step_y, GAP + index % columns * step_x
        canvas[top : top + height * scale, left : left + width * scale] = tile
    return to_pil(canvas)

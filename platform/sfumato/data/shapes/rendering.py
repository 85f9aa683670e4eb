"""Pictures of scenes, and the maps that go with them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from sfumato.data.shapes.scenes import Scenes, sides
from sfumato.data.shapes.vocabulary import BACKGROUNDS, COLOURS, MOST, SHAPES

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
_FINE = 8
"""Subpixels along a side, whose mean is the smooth edge of a shape."""
_POINTS, _INNER = 5, 0.45
COLOUR_C3 = np.array(list(COLOURS.values()), np.float32)
BACKGROUND_B3 = np.array(list(BACKGROUNDS.values()), np.float32)


@dataclass(frozen=True, slots=True)
class Pictures:
    """`image` uint8 [N, H, W, 3]; `edge`, `mask` and `depth` uint8 [N, H, W, 1].

    `edge` is 255 on the outer pixels of every visible object, `mask` the shape's number from 1 on times
    `MASK_STEP`, `depth` the object's number from 1 (farthest) on times `DEPTH_STEP`; all are 0 elsewhere.
    """

    image: U8
    edge: U8
    mask: U8
    depth: U8


MASK_STEP, DEPTH_STEP = 40, 60


@cache
def template(shape: int, side: int) -> F32:
    """How much of each pixel of its box [side, side] a shape covers, 0 to 1."""
    at = (np.arange(side * _FINE) + 0.5) / (side * _FINE) * 2 - 1
    x, y = np.meshgrid(at, -at)  # y upwards
    inside = _INSIDE[SHAPES[shape]](x, y)
    covered: F32 = inside.reshape(side, _FINE, side, _FINE).mean((1, 3)).astype(np.float32)
    return covered


def render(scenes: Scenes) -> Pictures:
    """Pictures of all scenes."""
    count, size = len(scenes.row_N), scenes.size
    canvas = np.repeat(BACKGROUND_B3[scenes.background_N], size * size, 0).reshape(count, size, size, 3)
    owner = np.zeros((count, size, size), np.int64)
    for k in range(MOST):
        for number, side in enumerate(sides(size)):
            for shape in range(len(SHAPES)):
                is_it = (scenes.shape_NK[:, k] == shape) & (scenes.size_NK[:, k] == number)
                rows = np.nonzero(is_it & (scenes.count_N > k))[0]
                _draw(canvas, owner, scenes, rows, k, template(shape, int(side)))
    numbered = np.concatenate([np.zeros((count, 1), np.int64), scenes.shape_NK + 1], 1)
    mask = np.take_along_axis(numbered, owner.reshape(count, -1), 1).reshape(owner.shape)
    return Pictures(
        np.rint(canvas).astype(np.uint8),
        (255 * _outlines(owner)).astype(np.uint8)[..., None],
        (MASK_STEP * mask).astype(np.uint8)[..., None],
        (DEPTH_STEP * owner).astype(np.uint8)[..., None],
    )


def _draw(
    canvas: F32, owner: NDArray[np.int64], scenes: Scenes, rows: NDArray[np.int64], k: int, cover_SS: F32
) -> None:
    span = np.arange(len(cover_SS))
    x, y = scenes.corner_NKA[rows, k, 0], scenes.corner_NKA[rows, k, 1]
    at = rows[:, None, None], (y[:, None] + span)[:, :, None], (x[:, None] + span)[:, None, :]
    colour = COLOUR_C3[scenes.colour_NK[rows, k]][:, None, None]
    below = canvas[at]
    canvas[at] = below + cover_SS[..., None] * (colour - below)
    owner[at] = np.where(cover_SS >= 0.5, k + 1, owner[at])


def _outlines(owner: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Pixels of an object with another owner above, below, left or right of them, or at the border."""
    around = np.pad(owner, ((0, 0), (1, 1), (1, 1)))
    size = owner.shape[1]
    other = np.zeros(owner.shape, bool)
    for down, across in ((0, 1), (2, 1), (1, 0), (1, 2)):
        other |= around[:, down : down + size, across : across + size] != owner
    return other & (owner > 0)


def _star(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The outline of `_POINTS` points, between radius 1 and `_INNER`, as straight lines."""
    step = np.pi / _POINTS
    angle = np.mod(np.arctan2(x, y + 0.05) + step, 2 * step) - step
    radius = np.hypot(x, y + 0.05) / 1.05
    across, along = radius * np.abs(np.sin(angle)), radius * np.cos(angle)
    dip_x, dip_y = _INNER * np.sin(step), _INNER * np.cos(step)
    inside: NDArray[np.bool_] = across * (1 - dip_y) <= dip_x * (1 - along)
    return inside


def _heart(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    u, v = 1.16 * x, 1.12 * y + 0.12
    inside: NDArray[np.bool_] = (u**2 + v**2 - 1) ** 3 <= u**2 * v**3
    return inside


_INSIDE = {
    "circle": lambda x, y: x**2 + y**2 <= 1,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) <= 1,
    "triangle": lambda x, y: (y >= -0.9) & (np.abs(x) <= (0.95 - y) / 1.85),
    "star": _star,
    "cross": lambda x, y: (
        (np.maximum(np.abs(x), np.abs(y)) <= 1) & (np.minimum(np.abs(x), np.abs(y)) <= 0.34)
    ),
    "heart": _heart,
}

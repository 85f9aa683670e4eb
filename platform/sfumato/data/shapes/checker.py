"""Reads from a picture which shapes it shows, where, and in which colours. Nothing is learnt.

Every pixel is explained as a mixture of the background and one colour, which smooth and blurred edges are.
Connected pixels of one colour are compared with every shape at several sizes and positions, sharp and
blurred; pixels of another object count neither for nor against a shape. What fits no shape is reported as an
object of none, and a picture that its own reading does not explain, noise for example, shows nothing at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

from sfumato.data.shapes.contents import Contents, Thing
from sfumato.data.shapes.rendering import BACKGROUND_B3, COLOUR_C3, F32, U8, template
from sfumato.data.shapes.vocabulary import BACKGROUNDS, COLOURS, SHAPES, SIZES

VERSION = 1
"""Increased when the same picture may be read otherwise."""
LEAST_FIT = 0.8
"""Dice's coefficient with the best shape, below which an object is of no shape."""
LEAST_AREA = 0.35
"""Of the smallest shape's pixels: fewer connected ones are no object."""
UNEXPLAINED = 40.0
"""Mean distance in colour (root of the mean square, of 255) of a picture from its reading, at most."""
_SPREAD = 1.2
"""Sizes are looked for from the smallest over this to the largest times this."""
_SHIFT = 2
_BLURS = (0.0, 0.8)
"""Deviations of the blurs of patterns, in pixels of a picture of side 32."""
Labels = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Checker:
    """Reads pictures of side `size`."""

    size: int

    def read(self, images_NHWC: U8) -> list[Contents | None]:
        """What each picture [N, size, size, 3] shows; None for one that shows no shapes on a background."""
        assert images_NHWC.shape[1:] == (self.size, self.size, 3), images_NHWC.shape
        return [self._read(image_HWC.astype(np.float32)) for image_HWC in images_NHWC]

    def _read(self, image_HW3: F32) -> Contents | None:
        background = _background(image_HW3)
        share_HWC = _shares(image_HW3, BACKGROUND_B3[background])
        label_HW, left_HW = _explained(image_HW3, BACKGROUND_B3[background], share_HWC)
        if float(np.sqrt(left_HW.mean() / 3)) > UNEXPLAINED:
            return None
        things = tuple(
            self._thing(part_HW, label_HW, share_HWC[..., colour], colour)
            for colour in range(len(COLOURS))
            for part_HW in self._parts(label_HW == colour)
        )
        return Contents(tuple(BACKGROUNDS)[background], things) if things else None

    def _parts(self, of_colour_HW: Mask) -> list[Mask]:
        """Its connected parts that are large enough to be objects."""
        from scipy import ndimage

        if not of_colour_HW.any():
            return []
        numbered, count = ndimage.label(of_colour_HW)
        areas = np.bincount(numbered.ravel(), minlength=count + 1)
        return [numbered == n for n in range(1, count + 1) if areas[n] >= LEAST_AREA * self._patterns.least]

    def _thing(self, part_HW: Mask, label_HW: Labels, share_HW: F32, colour: int) -> Thing:
        from scipy import ndimage

        patterns = self._patterns
        y, x = np.nonzero(part_HW)
        middle = (int(x.min() + x.max() + 1) // 2, int(y.min() + y.max() + 1) // 2)
        near_HW = ndimage.binary_dilation(part_HW, np.ones((3, 3), bool))
        mine = patterns.cut(np.where(near_HW, share_HW, 0), middle)
        others = patterns.cut(((label_HW >= 0) & (label_HW != colour)).astype(np.float32), middle)
        best, fit = patterns.best(mine, others)
        shape, side, left, top = patterns.of[best]
        corner = (middle[0] + left, middle[1] + top)
        sides = np.array(list(SIZES.values())) * self.size
        size = tuple(SIZES)[int(np.abs(np.log(sides / side)).argmin())]
        at = [(place + side / 2) / self.size for place in corner]
        return Thing(SHAPES[shape] if fit >= LEAST_FIT else "", tuple(COLOURS)[colour], size, at[0], at[1])

    @cached_property
    def _patterns(self) -> _Patterns:
        return _patterns(self.size)


class _Patterns:
    """Every shape at every size, shift and blur, drawn on a window of `width` pixels. `of` are shape, side,
    and the corner of the box, counted from the window's middle."""

    def __init__(self, size: int) -> None:
        from scipy import ndimage

        low, high = min(SIZES.values()) * size / _SPREAD, max(SIZES.values()) * size * _SPREAD
        sides = range(round(low), round(high) + 1)
        self.width = sides[-1] + 2 * _SHIFT + 2
        self.of: list[tuple[int, int, int, int]] = []
        drawn = []
        shifts = range(-_SHIFT, _SHIFT + 1)
        for shape in range(len(SHAPES)):
            for side in sides:
                for across in shifts:
                    for down in shifts:
                        left, top = across - side // 2, down - side // 2
                        x, y = left + self.width // 2, top + self.width // 2
                        window = np.zeros((self.width, self.width), np.float32)
                        window[y : y + side, x : x + side] = template(shape, side)
                        for blur in _BLURS:
                            self.of.append((shape, side, left, top))
                            drawn.append(ndimage.gaussian_filter(window, blur * size / 32).ravel())
        self._drawn_PW: F32 = np.stack(drawn)
        self._square_PW: F32 = np.square(self._drawn_PW)
        small = round(min(SIZES.values()) * size)
        self.least = min(float(template(shape, small).sum()) for shape in range(len(SHAPES)))

    def cut(self, values_HW: F32, middle: tuple[int, int]) -> F32:
        """The window around a pixel (x, y), 0 outside the picture, flat."""
        half = self.width // 2
        padded = np.pad(values_HW, self.width)
        x, y = middle[0] + self.width - half, middle[1] + self.width - half
        window: F32 = padded[y : y + self.width, x : x + self.width].ravel().astype(np.float32)
        return window

    def best(self, mine_W: F32, others_W: F32) -> tuple[int, float]:
        """The pattern P of the largest 2 sum(PM) / (sum(P^2) + sum(M^2)), where no other object is, and that
        coefficient."""
        free_W = 1 - others_W
        mine_W = mine_W * free_W
        both_P = 2 * (self._drawn_PW @ mine_W)
        fit_P = both_P / (self._square_PW @ free_W + np.square(mine_W).sum())
        best = int(fit_P.argmax())
        return best, float(fit_P[best])


@cache
def _patterns(size: int) -> _Patterns:
    return _Patterns(size)


def _background(image_HW3: F32) -> int:
    """The background's colour that is nearest to most pixels."""
    palette = np.concatenate([BACKGROUND_B3, COLOUR_C3])
    nearest = _distance(image_HW3[:, :, None], palette).argmin(-1)
    counts = np.bincount(nearest.ravel(), minlength=len(palette))[: len(BACKGROUND_B3)]
    return int(counts.argmax())


def _shares(image_HW3: F32, background_3: F32) -> F32:
    """For every colour, its share [H, W, C] in the nearest mixture with the background."""
    towards_C3 = COLOUR_C3 - background_3
    share_HWC = ((image_HW3 - background_3) @ towards_C3.T) / np.square(towards_C3).sum(1)
    clipped: F32 = np.clip(share_HWC, 0, 1)
    return clipped


def _explained(image_HW3: F32, background_3: F32, share_HWC: F32) -> tuple[Labels, F32]:
    """The colour [H, W] that explains each pixel best, -1 for the background, and the squared distance that
    it leaves."""
    towards_C3 = COLOUR_C3 - background_3
    left_HWC = _distance((image_HW3 - background_3)[:, :, None], share_HWC[..., None] * towards_C3)
    best_HW = left_HWC.argmin(-1)[..., None]
    share_HW = np.take_along_axis(share_HWC, best_HW, -1)[..., 0]
    left_HW: F32 = np.take_along_axis(left_HWC, best_HW, -1)[..., 0]
    return np.where(share_HW >= 0.5, best_HW[..., 0], -1), left_HW


def _distance(a: F32, b: F32) -> F32:
    distance: F32 = np.square(a - b).sum(-1)
    return distance

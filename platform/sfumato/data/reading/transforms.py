"""Augmentation of uint8 images as they are read: flip, shifted crop, colour.

Each sample's changes are drawn from (seed, epoch, key) and the transform's place in the list, so every
worker, every resume and every number of read tasks gives the same pixels, and the next epoch gives others.

One draw moves all images of a sample: a flip or crop of `image` also applies to its control image, mask or
target, at their own sizes. Colour changes only `image`.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd, lcm
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from pydantic import Field, model_validator

from sfumato.core.config import Config

U8 = NDArray[np.uint8]
Draws = NDArray[np.float64]
Images = Mapping[str, U8]
"""The images of one sample by column, including `image`, uint8 [H, W, C] each."""
Size = tuple[int, int]
_DRAWS = 8


class Transform(Config, ABC):
    """Changes the images of a sample and keeps their shapes."""

    @abstractmethod
    def apply(self, images: Images, draws: Draws) -> Images:
        """The changed images [H, W, C] by column, by eight independent draws from [0, 1).

        The input stays unchanged.
        """

    def problems(self, sizes: Mapping[str, Size]) -> list[str]:
        """Why it cannot move images of these sizes (height, width) together, one line each."""
        return []


class Flip(Transform):
    """Mirror left and right."""

    kind: Literal["flip"] = Field("flip", description="Mirror left and right.")
    probability: float = Field(0.5, ge=0, le=1, description="How often.")

    def apply(self, images: Images, draws: Draws) -> Images:
        if draws[0] >= self.probability:
            return images
        return {name: image_HWC[:, ::-1] for name, image_HWC in images.items()}


class Crop(Transform):
    """A random part of the image, at the image's own size.

    If images have several sizes, the part is chosen on a grid of whole pixels in all of them: with a
    control image of half the size, shifts are even.
    """

    kind: Literal["crop"] = Field("crop", description="A random part of the padded or scaled image.")
    pad: int = Field(
        0, ge=0, description="Pixels added on every side before a crop of the old size: the largest shift."
    )
    fill: Literal["reflect", "edge", "zero"] = Field("reflect", description="What the added pixels are.")
    scale: tuple[float, float] = Field(
        (1.0, 1.0),
        description="Smallest and largest share of height and width to keep and scale up again "
        "(bicubic); 0.8 and 1 zooms in by up to a quarter.",
    )

    @model_validator(mode="after")
    def _in_order(self) -> Crop:
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise ValueError("scale must be two numbers with 0 < smallest <= largest <= 1")
        return self

    def problems(self, sizes: Mapping[str, Size]) -> list[str]:
        steps = _steps(sizes)
        if not self.pad or not any(self.pad % step for step in steps):
            return []
        shown = ", ".join(f"{name} {width}x{height}" for name, (height, width) in sizes.items())
        problem = f"crop with pad {self.pad} cannot shift images of several sizes alike ({shown})"
        return [f"{problem}: make pad a multiple of {lcm(*steps)}"]

    def apply(self, images: Images, draws: Draws) -> Images:
        sizes = {name: image_HWC.shape[:2] for name, image_HWC in images.items()}
        (height, width), (down, right) = sizes["image"], _steps(sizes)
        if self.pad:
            top = down * _whole(draws[0], 2 * self.pad // down)
            left = right * _whole(draws[1], 2 * self.pad // right)
            images = {
                name: self._shifted(image, top, left, (height, width)) for name, image in images.items()
            }
        low, high = self.scale
        if low < 1:
            part = low + (high - low) * draws[2]
            rows = max(1, round(part * (height // down))) * down
            columns = max(1, round(part * (width // right))) * right
            top = down * _whole(draws[3], (height - rows) // down)
            left = right * _whole(draws[4], (width - columns) // right)
            box = (top, left, rows, columns)
            images = {name: _zoomed(image, box, (height, width)) for name, image in images.items()}
        return images

    def _shifted(self, image_HWC: U8, top: int, left: int, of: Size) -> U8:
        """`top`, `left` and `pad` are in pixels of an image of size `of`."""
        height, width, _ = image_HWC.shape
        rows, columns = self.pad * height // of[0], self.pad * width // of[1]
        top, left = top * height // of[0], left * width // of[1]
        mode: Literal["constant", "reflect", "edge"] = "constant" if self.fill == "zero" else self.fill
        out = np.pad(image_HWC, ((rows, rows), (columns, columns), (0, 0)), mode)
        return out[top : top + height, left : left + width]


class Colour(Transform):
    """Brightness, contrast and saturation, each by a factor between 1 - x and 1 + x, in this order."""

    kind: Literal["colour"] = Field("colour", description="Changes brightness, contrast and saturation.")
    brightness: float = Field(0.0, ge=0, le=1, description="Factor on the pixels.")
    contrast: float = Field(0.0, ge=0, le=1, description="Factor on the distance from the mean grey.")
    saturation: float = Field(0.0, ge=0, le=1, description="Factor on the distance from the grey image.")

    def apply(self, images: Images, draws: Draws) -> Images:
        return {**images, "image": self._changed(images["image"], draws)}

    def _changed(self, image_HWC: U8, draws: Draws) -> U8:
        grey = image_HWC.shape[2] == 1
        image = Image.fromarray(np.ascontiguousarray(image_HWC[:, :, 0] if grey else image_HWC))
        steps = (
            (ImageEnhance.Brightness, self.brightness),
            (ImageEnhance.Contrast, self.contrast),
            (ImageEnhance.Color, 0.0 if grey else self.saturation),
        )
        for (enhance, strength), draw in zip(steps, draws, strict=False):
            if strength:
                image = enhance(image).enhance(1 + strength * (2 * draw - 1))
        return np.asarray(image).reshape(image_HWC.shape)


AnyTransform = Annotated[Flip | Crop | Colour, Field(discriminator="kind")]


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Applies transforms one after another, for one seed."""

    transforms: Sequence[Flip | Crop | Colour]
    seed: int

    def apply(self, images: Images, epoch: int, key: str) -> Images:
        """The images, by column, as this epoch sees the sample of this key."""
        for place, transform in enumerate(self.transforms):
            images = transform.apply(images, _draws(self.seed, epoch, key, place))
        return images


def _draws(seed: int, epoch: int, key: str, place: int) -> Draws:
    """Uniform draws of 53 bits. A hash, since seeding a generator takes longer than flipping an image."""
    text = f"{seed}\x1f{epoch}\x1f{place}\x1f{key}".encode("utf-8", "surrogateescape")
    digest = hashlib.blake2b(text, digest_size=8 * _DRAWS, person=b"transform").digest()
    return (np.frombuffer(digest, ">u8") >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _whole(draw: float, most: int) -> int:
    """A uniform integer in 0 .. most."""
    return int(draw * (most + 1))


def _steps(sizes: Mapping[str, Size]) -> tuple[int, int]:
    """The smallest shift of `image`, down and to the right, that is whole pixels in all the images."""
    height, width = sizes["image"]
    down = [height // gcd(height, other) for other, _ in sizes.values()]
    right = [width // gcd(width, other) for _, other in sizes.values()]
    return lcm(*down), lcm(*right)


def _zoomed(image_HWC: U8, box: tuple[int, int, int, int], of: Size) -> U8:
    """A part (top, left, rows, columns, in pixels of an image of size `of`), scaled up to the whole."""
    height, width, _ = image_HWC.shape
    top, rows = (pixels * height // of[0] for pixels in box[::2])
    left, columns = (pixels * width // of[1] for pixels in box[1::2])
    return _resized(image_HWC[top : top + rows, left : left + columns], height, width)


def _resized(image_HWC: U8, height: int, width: int) -> U8:
    channels = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(image_HWC[:, :, channel])).resize(
                (width, height), Image.Resampling.BICUBIC
            )
        )
        for channel in range(image_HWC.shape[2])
    ]
    return np.stack(channels, axis=2)

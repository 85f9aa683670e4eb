"""Augmentation of uint8 images where they are read: flip, shifted crop, colour.

What happens to a sample is drawn from (seed, epoch, key) and the transform's place in the list, so every
worker, every resume and every number of read tasks gives the same pixels, and the next epoch gives others.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from pydantic import Field, model_validator

from sfumato.core.config import Config

U8 = NDArray[np.uint8]
Draws = NDArray[np.float64]
_DRAWS = 8


class Transform(Config, ABC):
    """Changes one image; gives back the same shape."""

    @abstractmethod
    def apply(self, image_HWC: U8, draws: Draws) -> U8:
        """The changed image, by eight independent draws from [0, 1). The input stays as it is."""


class Flip(Transform):
    """Mirror left and right."""

    kind: Literal["flip"] = Field("flip", description="Mirror left and right.")
    probability: float = Field(0.5, ge=0, le=1, description="How often.")

    def apply(self, image_HWC: U8, draws: Draws) -> U8:
        return image_HWC[:, ::-1] if draws[0] < self.probability else image_HWC


class Crop(Transform):
    """A random part of the image, at the image's own size."""

    kind: Literal["crop"] = Field("crop", description="A random part of the padded or scaled image.")
    pad: int = Field(
        0, ge=0, description="Pixels added on every side before a crop of the old size: shifts by up to this."
    )
    fill: Literal["reflect", "edge", "zero"] = Field("reflect", description="What the added pixels are.")
    scale: tuple[float, float] = Field(
        (1.0, 1.0),
        description="Smallest and largest part of height and width that is kept and scaled up again "
        "(bicubic); 0.8 and 1 zooms in by up to a quarter.",
    )

    @model_validator(mode="after")
    def _in_order(self) -> Crop:
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise ValueError("scale is two numbers with 0 < smallest <= largest <= 1")
        return self

    def apply(self, image_HWC: U8, draws: Draws) -> U8:
        height, width, _ = image_HWC.shape
        out = image_HWC
        if self.pad:
            mode: Literal["constant", "reflect", "edge"] = "constant" if self.fill == "zero" else self.fill
            out = np.pad(out, ((self.pad, self.pad), (self.pad, self.pad), (0, 0)), mode)
            top, left = _whole(draws[0], 2 * self.pad), _whole(draws[1], 2 * self.pad)
            out = out[top : top + height, left : left + width]
        low, high = self.scale
        if low < 1:
            part = low + (high - low) * draws[2]
            rows, columns = max(1, round(part * height)), max(1, round(part * width))
            top, left = _whole(draws[3], height - rows), _whole(draws[4], width - columns)
            out = _resized(out[top : top + rows, left : left + columns], height, width)
        return out


class Colour(Transform):
    """Brightness, contrast and saturation, each by a factor between 1 - x and 1 + x, in this order."""

    kind: Literal["colour"] = Field("colour", description="Changes brightness, contrast and saturation.")
    brightness: float = Field(0.0, ge=0, le=1, description="Factor on the pixels.")
    contrast: float = Field(0.0, ge=0, le=1, description="Factor on the distance from the mean grey.")
    saturation: float = Field(0.0, ge=0, le=1, description="Factor on the distance from the grey image.")

    def apply(self, image_HWC: U8, draws: Draws) -> U8:
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
    """Transforms one after the other, for one seed."""

    transforms: Sequence[Flip | Crop | Colour]
    seed: int

    def apply(self, image_HWC: U8, epoch: int, key: str) -> U8:
        """The image as this epoch sees the sample of this key."""
        for place, transform in enumerate(self.transforms):
            image_HWC = transform.apply(image_HWC, _draws(self.seed, epoch, key, place))
        return image_HWC


def _draws(seed: int, epoch: int, key: str, place: int) -> Draws:
    """Uniform draws of 53 bits. A hash, since a generator takes longer to seed than an image to flip."""
    text = f"{seed}\x1f{epoch}\x1f{place}\x1f{key}".encode("utf-8", "surrogateescape")
    digest = hashlib.blake2b(text, digest_size=8 * _DRAWS, person=b"transform").digest()
    return (np.frombuffer(digest, ">u8") >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _whole(draw: float, most: int) -> int:
    """0 .. most, uniformly."""
    return int(draw * (most + 1))


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

"""From an image of any kind to the bytes that a shard holds: upright, of one size, encoded.

Resizing is Pillow's, whose filters widen with the scale: every source pixel counts, so nothing aliases
(Parmar, Zhang and Zhu, "On Aliased Resizing and Surprising Subtleties in GAN Evaluation", CVPR 2022, show
what filters that do not widen do to FID).
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from sfumato.core.seeds import derive
from sfumato.data.format.faults import ImageFault
from sfumato.data.format.images import (
    PACKED,
    U8,
    Channels,
    converted,
    is_grey,
    opened,
    orientation_of,
    png,
    set_orientation,
    upright_size,
)

Encoded = Path | bytes | U8
Size = tuple[int, int]
Resample = Literal["lanczos", "bicubic", "bilinear", "box"]
Crop = Literal["center", "random"]
Format = Literal["png", "jpeg", "webp", "keep"]

_FILTERS: Mapping[Resample, Image.Resampling] = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
}
_EXTENSIONS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}


@dataclass(frozen=True, slots=True)
class Look:
    """The facts in an image's header: its upright size, and whether it is grey."""

    width: int
    height: int
    grey: bool


def look(image: Encoded, max_pixels: int) -> Look:
    """Raises ImageFault for data that is not an image or has too many pixels; nothing is decoded."""
    if isinstance(image, np.ndarray):
        height, width, channels = image.shape
        return Look(width, height, channels == 1)
    with _opened(image, max_pixels) as file:
        width, height = upright_size(file)
        return Look(width, height, is_grey(file))


@dataclass(frozen=True, slots=True)
class Geometry:
    """How every image of a shard is stored. `size` (width, height) None keeps the images' own."""

    channels: Channels
    size: Size | None
    resample: Resample
    crop: Crop
    upscale: bool
    format: Format
    quality: int
    max_pixels: int

    def encode(self, image: Encoded, key: str) -> tuple[str, bytes, Size]:
        """Extension, bytes and (width, height) of the stored image. Raises ImageFault."""
        if isinstance(image, np.ndarray):
            return self._encoded(self._fitted(_picture(image, self.channels), key))
        with _opened(image, self.max_pixels) as file:
            if self.format == "keep" and self._fits(file):
                return _EXTENSIONS[str(file.format)], _verified(image, file), file.size
            return self._encoded(self._fitted(upright(file, self.channels), key))

    def pixels(self, image: Encoded, key: str) -> U8:
        """The stored image before encoding, uint8 [H, W, C]. Raises ImageFault."""
        if isinstance(image, np.ndarray):
            return pixels_of(self._fitted(_picture(image, self.channels), key))
        with _opened(image, self.max_pixels) as file:
            return pixels_of(self._fitted(upright(file, self.channels), key))

    def _fits(self, file: Image.Image) -> bool:
        return (
            file.format in PACKED
            and orientation_of(file) == 1
            and self.size in (None, file.size)
            and (file.mode == ("L" if self.channels == 1 else "RGB"))
            and "transparency" not in file.info
        )

    def _fitted(self, image: Image.Image, key: str) -> Image.Image:
        if self.size is None or self.size == image.size:
            return image
        return covering(image, self.size, self.resample, self.crop, key, self.upscale)

    def _encoded(self, image: Image.Image) -> tuple[str, bytes, Size]:
        if self.format in ("png", "keep"):
            return "png", png(pixels_of(image)), image.size
        out = io.BytesIO()
        clean = Image.fromarray(np.asarray(image))  # without EXIF, profiles, comments
        if self.format == "jpeg":
            clean.save(out, "JPEG", quality=self.quality, subsampling=0)
            return "jpg", out.getvalue(), image.size
        clean.save(out, "WEBP", quality=self.quality, method=4, lossless=self.quality == 100)
        return "webp", out.getvalue(), image.size


def _picture(pixels_HWC: U8, channels: Channels) -> Image.Image:
    plain = Image.fromarray(pixels_HWC[:, :, 0] if pixels_HWC.shape[2] == 1 else pixels_HWC)
    return converted(plain, channels)


def pixels_of(image: Image.Image) -> U8:
    """uint8 [H, W, C] of an image of mode L or RGB."""
    pixels: U8 = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _opened(image: Path | bytes, max_pixels: int) -> Image.Image:
    if isinstance(image, bytes) and not image:
        raise ImageFault("its image has 0 bytes")
    return opened(io.BytesIO(image) if isinstance(image, bytes) else image, max_pixels)


def _verified(image: Path | bytes, file: Image.Image) -> bytes:
    """The original bytes of an image that decodes."""
    converted(file, 1 if is_grey(file) else 3)
    return image if isinstance(image, bytes) else image.read_bytes()


def upright(image: Image.Image, channels: Channels) -> Image.Image:
    """Decoded, converted to L or RGB, and turned as its EXIF data requires. Raises ImageFault."""
    orientation = orientation_of(image)
    plain = converted(image, channels)
    if orientation == 1:
        return plain
    set_orientation(plain, orientation)
    return ImageOps.exif_transpose(plain)


def covering(
    image: Image.Image, size: Size, resample: Resample, crop: Crop, key: str, upscale: bool
) -> Image.Image:
    """Scaled to the smallest image of its aspect ratio that covers `size` (width, height), then cropped.

    A random crop depends on the key alone. Raises ImageFault for an image that would have to be enlarged,
    unless `upscale` is set.
    """
    check_size(image.size, size, upscale)
    width, height = size
    scale = max(width / image.width, height / image.height)
    scaled = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    image = image.resize(scaled, _FILTERS[resample]) if scaled != image.size else image
    left, top = _corner((image.width - width, image.height - height), crop, key)
    return image.crop((left, top, left + width, top + height))


def _corner(room: Size, crop: Crop, key: str) -> Size:
    if crop == "center":
        return room[0] // 2, room[1] // 2
    draw = np.random.Generator(np.random.PCG64(derive("crop", key)))
    return int(draw.integers(room[0] + 1)), int(draw.integers(room[1] + 1))


def check_size(have: Size, want: Size, upscale: bool) -> None:
    if not upscale and (have[0] < want[0] or have[1] < want[1]):
        asked = str(want[0]) if want[0] == want[1] else f"{want[0]}x{want[1]}"
        raise ImageFault(f"{have[0]}x{have[1]} is smaller than the requested size {asked}")


def auto_buckets(size: int, step: int, max_aspect: float = 2.0) -> tuple[Size, ...]:
    """All (width, height) in multiples of `step` with at most size² pixels that no other of them contains.

    The aspect-ratio buckets of NovelAI's "improvements on Stable Diffusion" (2022): for each width the
    largest height, and vice versa, with a ratio of at most `max_aspect`.
    """
    found = set()
    for short in range(step, size + 1, step):
        long = size * size // short // step * step
        if long >= short and long / short <= max_aspect:
            found |= {(short, long), (long, short)}
    return tuple(sorted(found | {(size, size)}))


def nearest_bucket(have: Size, buckets: Sequence[Size], upscale: bool) -> Size:
    """The bucket of the nearest aspect ratio (least loss to the crop) that needs no enlarging.

    Raises ImageFault if every bucket is larger than the image.
    """
    fitting = [size for size in buckets if upscale or (size[0] <= have[0] and size[1] <= have[1])]
    if not fitting:
        raise ImageFault(f"{have[0]}x{have[1]} is smaller than every bucket")
    ratio = np.log(have[0] / have[1])
    return min(fitting, key=lambda size: (round(abs(np.log(size[0] / size[1]) - ratio), 9), -size[0], size))

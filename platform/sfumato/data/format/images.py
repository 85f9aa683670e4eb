"""Reads images: decoding that refuses unacceptable files, and conversion to grey or RGB in uint8.

Nothing here unpickles, and no image is decoded before its size is known to be acceptable.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sfumato.data.format.decoders import plain_pixels
from sfumato.data.format.faults import ImageFault
from sfumato.data.format.manifest import ImageInfo

U8 = NDArray[np.uint8]
Channels = Literal[1, 3]
MAX_PIXELS = 1 << 26
PACKED = ("PNG", "JPEG", "WEBP")
_FOREIGN = (*PACKED, "BMP")
_NPY = b"\x93NUMPY"
_ORIENTATION = 0x0112
_GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L")


@contextmanager
def bombs_refused() -> Iterator[None]:
    """Turns Pillow's warning about huge images into the error that `opened` reports. Wraps whole loops."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def opened(file: Path | io.BytesIO, max_pixels: int, formats: tuple[str, ...] = _FOREIGN) -> Image.Image:
    """An image whose header alone has been read. Raises ImageFault."""
    try:
        image = Image.open(file, formats=formats)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageFault(f"more than max_pixels={max_pixels:,} pixels") from error
    except Exception as error:  # Pillow raises anything on damaged input
        raise ImageFault(_reason("not an image that can be read", error)) from error
    if image.width * image.height > max_pixels:
        image.close()
        raise ImageFault(f"{image.width}x{image.height} is more than max_pixels={max_pixels:,} pixels")
    return image


def _reason(what: str, error: Exception) -> str:
    """Pillow's own text, if it says more than an address in memory."""
    text = (str(error).splitlines() or [""])[0]
    return what if not text or "cannot identify" in text else f"{what}: {text}"


def is_grey(image: Image.Image) -> bool:
    return image.mode in _GREY


def converted(image: Image.Image, channels: Channels) -> Image.Image:
    """Decode to mode L or RGB. Transparent areas become white, 16 bits become 8. Raises ImageFault."""
    mode = "L" if channels == 1 else "RGB"
    try:
        if image.mode == mode and "transparency" not in image.info:
            image.load()
            return image
        if image.mode.startswith("I"):
            levels = np.asarray(image).astype(np.int64)
            image = Image.fromarray((levels.clip(0, 0xFFFF) >> 8).astype(np.uint8))
        elif image.mode == "F":
            raise ImageFault("floating-point pixels have no known range; store 8 or 16 bits")
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return image.convert(mode)
    except ImageFault:
        raise
    except Exception as error:  # as above
        raise ImageFault(_reason("its pixels cannot be decoded", error)) from error


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) after the rotation that its EXIF data asks for."""
    return (image.height, image.width) if orientation_of(image) in (5, 6, 7, 8) else image.size


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation, 1 is upright. Searches only the header: `getexif` may decode all pixels."""
    if "exif" not in image.info:
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception as error:  # as above
        raise ImageFault(_reason("its EXIF data cannot be read", error)) from error


def set_orientation(image: Image.Image, orientation: int) -> None:
    """Restore the EXIF data that conversion loses."""
    image.getexif()[_ORIENTATION] = orientation


def _with_channels(pixels: NDArray[Any]) -> U8:
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def png(pixels_HWC: U8) -> bytes:
    """PNG bytes. The same pixels give the same bytes under one version of Pillow and its zlib."""
    out = io.BytesIO()
    grey = pixels_HWC.shape[2] == 1
    Image.fromarray(pixels_HWC[:, :, 0] if grey else pixels_HWC).save(
        out, "PNG", compress_level=6, optimize=False
    )
    return out.getvalue()


def decoded(data: bytes, info: ImageInfo, into: U8 | None = None) -> U8:
    """The image of one packed sample (PNG, JPEG, WebP or npy), uint8 [H, W, C]. Raises ImageFault.

    The size is compared with the manifest's before anything is decoded. The result is `into`,
    contiguous and of that shape, if the decoder could write there.
    """
    if data.startswith(_NPY):
        return _npy(data, info)
    pixels = plain_pixels(data, info.height, info.width, info.channels, into)
    if pixels is not None:
        return pixels
    image = opened(io.BytesIO(data), MAX_PIXELS, PACKED)
    if image.size != (info.width, info.height):
        raise ImageFault(f"{image.width}x{image.height}, where all are {info.width}x{info.height}")
    return _with_channels(np.asarray(converted(image, info.channels)))


def packed_look(data: bytes, max_pixels: int) -> tuple[int, int, bool]:
    """(width, height, grey) of a packed sample, from its header. Raises ImageFault."""
    if not data.startswith(_NPY):
        with opened(io.BytesIO(data), max_pixels, PACKED) as image:
            return image.width, image.height, is_grey(image)
    shape, _, _ = _npy_header(io.BytesIO(data))
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3)) or 0 in shape:
        raise ImageFault(f"npy of shape {shape}; wanted (H, W), (H, W, 1) or (H, W, 3)")
    if shape[0] * shape[1] > max_pixels:
        raise ImageFault(f"{shape[1]}x{shape[0]} is more than max_pixels={max_pixels:,} pixels")
    return shape[1], shape[0], len(shape) == 2 or shape[2] == 1


def _npy_header(stream: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        old = np.lib.format.read_magic(stream) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
        return read(stream)
    except (ValueError, EOFError) as error:
        raise ImageFault(_reason("not an npy array", error)) from error


def _npy(data: bytes, info: ImageInfo) -> U8:
    """An npy array without `np.load`, which would allocate whatever its header claims."""
    stream = io.BytesIO(data)
    shape, fortran, dtype = _npy_header(stream)
    expected = (info.height, info.width, info.channels)
    if shape not in (expected, expected[:2] if info.channels == 1 else expected):
        raise ImageFault(f"npy of shape {shape}, where all are {expected}")
    if dtype != np.uint8 or fortran:
        raise ImageFault(f"npy of type {dtype}; wanted uint8 in C order")
    if len(data) - stream.tell() < int(np.prod(shape)):
        raise ImageFault("npy ends before its last pixel")
    return np.frombuffer(data, np.uint8, int(np.prod(shape)), stream.tell()).reshape(expected)

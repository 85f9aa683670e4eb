"""The fast decoders give Pillow's pixels, or leave the file to Pillow."""

from __future__ import annotations

import io
from itertools import product
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfumato.data.format.decoders import plain_pixels
from sfumato.data.format.images import decoded
from sfumato.data.format.manifest import ImageInfo

HEIGHT, WIDTH = 47, 61
SMOOTH = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)).resize(
    (WIDTH, HEIGHT), Image.Resampling.BICUBIC
)


def saved(image: Image.Image, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, **options)
    return out.getvalue()


def by_pillow(data: bytes, channels: int) -> np.ndarray[Any, Any]:
    image = Image.open(io.BytesIO(data)).convert("L" if channels == 1 else "RGB")
    return np.asarray(image).reshape(HEIGHT, WIDTH, channels)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize(
    "options",
    [{"format": "PNG", "compress_level": level} for level in (0, 6)]
    + [
        {"format": "JPEG", "quality": quality, "subsampling": subsampling, "progressive": progressive}
        for quality, subsampling, progressive in product((20, 95), (0, 1, 2), (False, True))
    ],
)
def test_plain_files_have_pillows_pixels(mode: str, options: dict[str, Any]) -> None:
    data, channels = saved(SMOOTH.convert(mode), **options), len(mode)
    fast = plain_pixels(data, HEIGHT, WIDTH, channels)
    assert fast is not None
    np.testing.assert_array_equal(fast, by_pillow(data, channels))
    place = np.zeros((2, HEIGHT, WIDTH, channels), np.uint8)
    placed = plain_pixels(data, HEIGHT, WIDTH, channels, into=place[1])
    assert placed is not None
    np.testing.assert_array_equal(placed, fast)
    assert not place[0].any()


def test_a_jpeg_is_decoded_in_place() -> None:
    data, place = saved(SMOOTH, format="JPEG"), np.zeros((2, HEIGHT, WIDTH, 3), np.uint8)
    into = place[1]
    assert plain_pixels(data, HEIGHT, WIDTH, 3, into=into) is into
    np.testing.assert_array_equal(into, by_pillow(data, 3))


def test_all_that_is_not_plain_is_left_to_pillow() -> None:
    left = [
        saved(SMOOTH.convert("RGBA"), format="PNG"),
        saved(SMOOTH.convert("P"), format="PNG"),
        saved(SMOOTH, format="PNG", transparency=(0, 0, 0)),
        saved(SMOOTH.convert("L"), format="PNG"),
        saved(SMOOTH.convert("L"), format="JPEG"),
        saved(SMOOTH.convert("CMYK"), format="JPEG"),
        saved(SMOOTH, format="JPEG", keep_rgb=True),
        saved(SMOOTH, format="WEBP"),
        saved(SMOOTH.rotate(90, expand=True), format="PNG"),
    ]
    for data in left:
        assert plain_pixels(data, HEIGHT, WIDTH, 3) is None
    for data in left[3:8]:
        rgb = decoded(data, ImageInfo(channels=3, height=HEIGHT, width=WIDTH))
        np.testing.assert_array_equal(rgb, by_pillow(data, 3))


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_cut_files_are_usable_exactly_where_pillow_says_so(form: str) -> None:
    data = saved(SMOOTH, format=form)
    for end in [*range(0, len(data), 97), len(data) - 12, len(data) - 2]:
        fast = plain_pixels(data[:end], HEIGHT, WIDTH, 3)
        if fast is not None:
            np.testing.assert_array_equal(fast, by_pillow(data[:end], 3))

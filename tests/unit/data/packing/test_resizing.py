"""Resizing against the definition of its filters, crops, buckets, and what encoding keeps."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfumato.data.format.faults import ImageFault
from sfumato.data.packing.dedupe import Print, near_duplicates, print_of
from sfumato.data.packing.resizing import Geometry, auto_buckets, covering, nearest_bucket

RNG = np.random.default_rng(5)


def lanczos(x: Any) -> Any:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


def bicubic(x: Any) -> Any:
    """Keys' kernel with a = -1/2."""
    x = np.abs(x)
    return np.where(
        x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0.0)
    )


def weights(kernel: Any, support: float, have: int, want: int) -> Any:
    """Row i: how much each of `have` pixels counts for output i, by the filter widened by the scale."""
    scale = have / want
    wide = max(scale, 1.0)
    centres = (np.arange(want) + 0.5) * scale
    places = np.arange(have) + 0.5
    near = np.abs(places[None] - centres[:, None]) < support * wide + 0.5
    table = kernel((places[None] - centres[:, None]) / wide) * near
    return table / table.sum(1, keepdims=True)


@pytest.mark.parametrize(
    ("name", "kernel", "support"), [("lanczos", lanczos, 3.0), ("bicubic", bicubic, 2.0)]
)
@pytest.mark.parametrize("size", [(16, 12), (40, 30), (96, 72)])
def test_resizing_is_the_antialiased_filter(name: Any, kernel: Any, support: float, size: Any) -> None:
    pixels = RNG.integers(0, 256, (48, 64), dtype=np.uint8)
    small = covering(Image.fromarray(pixels), size, name, "center", "key", upscale=True)
    rows = weights(kernel, support, 48, size[1])
    columns = weights(kernel, support, 64, size[0])
    wanted = (rows @ np.clip(pixels.astype(float) @ columns.T, 0, 255)).clip(0, 255)
    # 8 bits between the passes and after: one level of rounding each.
    assert np.abs(np.asarray(small, float) - wanted).max() <= 1.5
    assert small.size == size


def test_crops() -> None:
    pixels = np.arange(20 * 30, dtype=np.uint8).reshape(20, 30)
    image = Image.fromarray(pixels)
    middle = np.asarray(covering(image, (20, 20), "lanczos", "center", "any", upscale=False))
    np.testing.assert_array_equal(middle, pixels[:, 5:25])
    lefts = []
    for key in map(str, range(200)):
        one, two = (np.asarray(covering(image, (20, 20), "lanczos", "random", key, False)) for _ in range(2))
        np.testing.assert_array_equal(one, two)
        left = int(one[0, 0])
        np.testing.assert_array_equal(one, pixels[:, left : left + 20])
        lefts.append(left)
    assert set(lefts) == set(range(11))
    with pytest.raises(ImageFault, match="30x20 is smaller than the requested size 21"):
        covering(image, (21, 21), "lanczos", "center", "any", upscale=False)
    assert covering(image, (21, 21), "lanczos", "center", "any", upscale=True).size == (21, 21)


def test_buckets_have_the_asked_area_and_images_go_to_the_nearest_ratio() -> None:
    buckets = auto_buckets(512, 64)
    assert (512, 512) in buckets
    assert all(w % 64 == 0 and h % 64 == 0 and w * h <= 512 * 512 for w, h in buckets)
    assert all(max(w, h) / min(w, h) <= 2 for w, h in buckets)
    assert {(h, w) for w, h in buckets} == set(buckets)
    for width, height in RNG.integers(800, 3000, (200, 2)).tolist():
        chosen = nearest_bucket((width, height), buckets, upscale=False)
        off = [abs(np.log(w / h) - np.log(width / height)) for w, h in buckets]
        assert abs(np.log(chosen[0] / chosen[1]) - np.log(width / height)) == pytest.approx(min(off))
    with pytest.raises(ImageFault, match="smaller than every bucket"):
        nearest_bucket((200, 300), buckets, upscale=False)
    assert nearest_bucket((200, 300), buckets, upscale=True) in buckets


def geometry(**changes: Any) -> Geometry:
    plain = {"channels": 3, "size": None, "resample": "lanczos", "crop": "center", "upscale": False}
    return Geometry(**{**plain, "format": "keep", "quality": 90, "max_pixels": 10_000, **changes})


def jpeg(pixels: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", **options)
    return out.getvalue()


def test_keeping_bytes_and_what_keeps_from_it() -> None:
    pixels = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    data = jpeg(pixels)
    assert geometry().encode(data, "k") == ("jpg", data, (30, 20))
    assert geometry(size=(30, 20)).encode(data, "k")[1] == data
    exif = Image.Exif()
    exif[0x0112] = 6
    for other, changes in (
        (jpeg(pixels, exif=exif), {}),
        (data, {"size": (20, 20)}),
        (data, {"channels": 1}),
    ):
        extension, encoded, size = geometry(**changes).encode(other, "k")
        found = Image.open(io.BytesIO(encoded))
        assert (extension, found.format, found.size) == ("png", "PNG", size)
    with pytest.raises(ImageFault):
        geometry().encode(data[:300], "k")  # cut off: kept bytes have to decode
    for form, kind in (("jpeg", "JPEG"), ("webp", "WEBP")):
        _, encoded, _ = geometry(format=form).encode(data, "k")
        assert Image.open(io.BytesIO(encoded)).format == kind
    lossless = geometry(format="webp", quality=100).encode(pixels, "k")[1]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(lossless))), pixels)


def smooth(rng: np.random.Generator) -> Image.Image:
    noise = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return noise.resize((120, 90), Image.Resampling.BICUBIC)


def test_perceptual_hashes_survive_scale_and_quality_and_tell_pictures_apart() -> None:
    rng = np.random.default_rng(2)
    pictures = [smooth(rng) for _ in range(30)]
    prints = [print_of(picture) for picture in pictures]
    for picture, mine in zip(pictures, prints, strict=True):
        out = io.BytesIO()
        picture.resize((64, 48), Image.Resampling.LANCZOS).save(out, "JPEG", quality=60)
        again = print_of(Image.open(io.BytesIO(out.getvalue())))
        assert (again.bits ^ mine.bits).bit_count() <= 4
    apart = [(a.bits ^ b.bits).bit_count() for i, a in enumerate(prints) for b in prints[:i]]
    assert min(apart) > 8


@pytest.mark.parametrize("limit", [0, 1, 3, 8])
def test_near_duplicates_are_those_of_comparing_all_with_all(limit: int) -> None:
    rng = np.random.default_rng(limit)
    roots = [int(rng.integers(1 << 62)) for _ in range(12)]
    prints = []
    for _ in range(150):
        bits = roots[rng.integers(12)]
        for bit in rng.choice(64, rng.integers(0, 6), replace=False).tolist():
            bits ^= 1 << bit
        prints.append(Print(bits, bytes([int(rng.integers(2)) * 100] * 192)))
    rank = rng.permutation(150).tolist()
    kept: list[int] = []
    left_out = set()
    for row in sorted(range(150), key=lambda row: rank[row]):
        alike = [
            other
            for other in kept
            if (prints[other].bits ^ prints[row].bits).bit_count() <= limit
            and prints[other].thumb == prints[row].thumb
        ]
        if alike:
            left_out.add(row)
        else:
            kept.append(row)
    found = near_duplicates(prints, rank, limit)
    assert {pair.row for pair in found} == left_out
    assert all((prints[p.row].bits ^ prints[p.kept].bits).bit_count() == p.bits <= limit for p in found)

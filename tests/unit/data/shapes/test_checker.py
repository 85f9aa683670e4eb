"""The checker reads pictures as they were drawn, sharp or damaged, and noise as nothing."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from sfumato.data.shapes.checker import Checker
from sfumato.data.shapes.contents import Contents, alike, contents_of
from sfumato.data.shapes.rendering import BACKGROUND_B3, COLOUR_C3, U8, render, template
from sfumato.data.shapes.scenes import scenes
from sfumato.data.shapes.vocabulary import BACKGROUNDS, COLOURS, SHAPES

WITHIN = 2 / 32


def drawn(size: int, count: int) -> tuple[U8, list[Contents]]:
    found = scenes(11, np.arange(count), "both", size)
    return render(found).image, contents_of(found)


def right(size: int, images: U8, contents: list[Contents]) -> float:
    """Share of the pictures that are read wholly right: background, shapes, colours, sizes, positions."""
    read = Checker(size).read(images)
    return float(
        np.mean([r is not None and alike(c, r, WITHIN) for c, r in zip(contents, read, strict=True)])
    )


def noisy(images: U8, deviation: float) -> U8:
    noise = np.random.default_rng(0).normal(0, deviation, images.shape)
    return np.clip(np.rint(images + noise), 0, 255).astype(np.uint8)


def blurred(image: U8) -> U8:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(len(image) / 32)))


def as_jpeg(image: U8) -> U8:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=90)
    return np.asarray(Image.open(out))


@pytest.mark.parametrize(("size", "count"), [(32, 210), (64, 30)])
def test_real_pictures_are_read_wholly_right(size: int, count: int) -> None:
    images, contents = drawn(size, count)
    assert right(size, images, contents) > 0.995


def test_damaged_pictures_are_mostly_read_right() -> None:
    images, contents = drawn(32, 60)
    assert right(32, noisy(images, 20), contents) >= 0.95
    assert right(32, np.stack([blurred(image) for image in images]), contents) >= 0.95
    assert right(32, np.stack([as_jpeg(image) for image in images]), contents) >= 0.95


@pytest.mark.slow
def test_real_pictures_are_read_wholly_right_at_length() -> None:
    images, contents = drawn(32, 4_000)
    assert right(32, images, contents) > 0.995


def test_noise_and_bare_backgrounds_show_nothing() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    assert sum(found is not None for found in Checker(32).read(noise)) <= 4
    bare = np.broadcast_to(BACKGROUND_B3.astype(np.uint8)[:, None, None], (len(BACKGROUND_B3), 32, 32, 3))
    assert Checker(32).read(bare) == [None] * len(BACKGROUNDS)


def test_a_shape_that_is_none_of_the_vocabulary_is_reported_as_such() -> None:
    image = np.tile(BACKGROUND_B3[0], (32, 32, 1))
    image[10:13, 4:28] = COLOUR_C3[0]  # a bar
    (found,) = Checker(32).read(image[None].astype(np.uint8))
    assert found is not None
    assert [(thing.shape, thing.colour) for thing in found.things] == [("", "red")]


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_sizes_between_the_two_count_as_the_nearer(shape: int) -> None:
    sizes = {}
    for side in (8, 9, 10, 12, 13, 14):
        image = np.tile(BACKGROUND_B3[3], (32, 32, 1))
        cover = template(shape, side)[..., None]
        image[9 : 9 + side, 5 : 5 + side] = (1 - cover) * BACKGROUND_B3[3] + cover * COLOUR_C3[5]
        (found,) = Checker(32).read(np.rint(image[None]).astype(np.uint8))
        assert found is not None
        (thing,) = found.things
        assert (thing.shape, thing.colour) == (SHAPES[shape], list(COLOURS)[5])
        assert (thing.x * 32, thing.y * 32) == pytest.approx((5 + side / 2, 9 + side / 2), abs=0.51)
        sizes[side] = thing.size
    assert list(sizes.values()) == ["small"] * 3 + ["large"] * 3

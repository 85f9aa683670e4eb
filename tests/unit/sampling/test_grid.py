"""Grids of images with texts beside them."""

from __future__ import annotations

import numpy as np

from sfumato.sampling.grid import GAP, SMALLEST_TILE, image_grid, labelled_grid, prompt_grid

SIDE = 2 * SMALLEST_TILE
STEP = SIDE + GAP


def of_levels(*levels: int) -> np.ndarray:
    return np.stack([np.full((8, 8, 1), level, np.uint8) for level in levels])


def test_images_stand_in_the_rows_of_their_prompts() -> None:
    """Five images and two prompts in turn: rows 10, 30, 50 and 20, 40 and a white place."""
    picture = np.asarray(prompt_grid(of_levels(10, 20, 30, 40, 50), ["a red circle", "two"]))
    height, width, _ = picture.shape
    assert height == 2 * STEP + GAP
    left = width - (3 * STEP + GAP)
    assert left > 0
    middles = [
        [int(picture[row * STEP + STEP // 2, left + column * STEP + STEP // 2, 0]) for column in range(3)]
        for row in range(2)
    ]
    assert middles == [[10, 30, 50], [20, 40, 255]]
    for row in range(2):
        beside = picture[row * STEP : (row + 1) * STEP, :left]
        assert (beside < 100).any(), "a text"


def test_prompts_without_an_image_have_no_row() -> None:
    picture = prompt_grid(of_levels(10, 20), ["one", "two", "three"])
    assert picture.height == 2 * STEP + GAP


def test_columns_without_texts_take_no_space() -> None:
    images = of_levels(10, 20)
    plain = image_grid(images, columns=2, smallest=SIDE)
    bare, titled = (labelled_grid(images, ["x"], titles) for titles in (["", ""], ["a", ""]))
    assert bare.height == plain.height < titled.height

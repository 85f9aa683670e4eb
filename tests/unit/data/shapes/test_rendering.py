"""Pictures and maps agree with the scenes, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest

from sfumato.data.shapes.rendering import BACKGROUND_B3, COLOUR_C3, DEPTH_STEP, MASK_STEP, render, template
from sfumato.data.shapes.scenes import scenes, sides
from sfumato.data.shapes.vocabulary import SHAPES


@pytest.mark.parametrize("size", [32, 64])
def test_pictures_and_maps_are_those_of_the_scene(size: int) -> None:
    found = scenes(0, np.arange(60), "both", size)
    drawn = render(found)
    for n in range(60):
        picture = np.tile(BACKGROUND_B3[found.background_N[n]].astype(np.float64), (size, size, 1))
        owner = np.zeros((size, size), int)
        for k in range(found.count_N[n]):  # one object after another, nearer ones over farther ones
            side = int(sides(size)[found.size_NK[n, k]])
            x, y = found.corner_NKA[n, k]
            cover = template(int(found.shape_NK[n, k]), side)
            for row in range(side):
                for column in range(side):
                    at, share = (y + row, x + column), float(cover[row, column])
                    picture[at] = (1 - share) * picture[at] + share * COLOUR_C3[found.colour_NK[n, k]]
                    owner[at] = k + 1 if share >= 0.5 else owner[at]
        assert np.abs(picture - drawn.image[n]).max() <= 0.51
        np.testing.assert_array_equal(drawn.depth[n, :, :, 0], DEPTH_STEP * owner)
        shape = np.where(owner > 0, found.shape_NK[n][np.maximum(owner - 1, 0)] + 1, 0)
        np.testing.assert_array_equal(drawn.mask[n, :, :, 0], MASK_STEP * shape)
        np.testing.assert_array_equal(drawn.edge[n, :, :, 0] > 0, outlines(owner))


def outlines(owner: np.ndarray) -> np.ndarray:
    """A pixel of an object that has a neighbour of another owner, looked up one by one."""
    size = len(owner)
    found = np.zeros(owner.shape, bool)
    for y in range(size):
        for x in range(size):
            around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            others = {owner[at] if min(at) >= 0 and max(at) < size else 0 for at in around}
            found[y, x] = owner[y, x] > 0 and others != {owner[y, x]}
    return found


def test_areas_of_shapes_are_those_of_geometry() -> None:
    side = 64
    area = {name: template(number, side).sum() / side**2 for number, name in enumerate(SHAPES)}
    assert area["circle"] == pytest.approx(np.pi / 4, abs=2e-3)
    assert area["square"] == pytest.approx(1)
    assert area["triangle"] == pytest.approx(0.5 * 1.85**2 / 1.85 / 2, abs=0.01)
    assert area["cross"] == pytest.approx(1 - 0.66**2, abs=2e-3)
    # Ten triangles between a tip, a dip and the middle of a five-pointed star.
    assert area["star"] == pytest.approx(5 * 0.45 * np.sin(np.pi / 5) * 1.05**2 / 4, abs=0.01)

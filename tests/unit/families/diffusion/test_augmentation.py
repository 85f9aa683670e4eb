"""Changes of images before noise: what the network is told is what was done."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from sfumato.core.batch import DataSpec, Piece
from sfumato.core.rng import StreamRng
from sfumato.families.diffusion import Config
from sfumato.families.diffusion.augmentation import CHANGES, MOVE, STRETCH, changed

SIDE = 32


def rng(rows: int) -> StreamRng:
    return StreamRng((Piece(0, 0, rows),), rows_per_stream=rows, seed=0, images=0, phase="denoise")


def smooth(rows: int) -> Tensor:
    """Waves that bilinear and spline interpolation draw alike."""
    at = torch.arange(SIDE) / SIDE * 2 * math.pi
    phase = torch.arange(rows).view(-1, 1, 1)
    return ((at[:, None] + phase).sin() * (at + 0.5 * phase).cos())[:, None]


def test_without_changes_images_are_mirrored_or_not_and_the_network_knows() -> None:
    x = torch.randn(64, 3, 8, 8)
    found, told = changed(x, rng(64), 0.0)
    mirrored = told[:, 0] == 1
    assert 0.3 < float(mirrored.float().mean()) < 0.7
    torch.testing.assert_close(found[mirrored], x[mirrored].flip(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[~mirrored], x[~mirrored], atol=0, rtol=0)
    assert not told[:, 1:].any()


def test_each_change_happens_with_its_probability() -> None:
    _, told = changed(torch.zeros(4_000, 1, 8, 8), rng(4_000), 0.2)
    kinds = {"scale": [2], "turn": [3, 4], "stretch": [5, 6], "move": [7, 8]}
    for name, columns in kinds.items():
        share = float(told[:, columns].any(dim=1).float().mean())
        assert share == pytest.approx(0.2, abs=0.025), name
    assert float(told[:, 1].mean()) == pytest.approx(0.1, abs=0.02), "half of those that may"
    moved = told[:, 7][told[:, 7] != 0]
    assert float(moved.std()) == pytest.approx(1, abs=0.1)


def test_what_is_told_is_what_was_done() -> None:
    """The image is drawn again from the numbers alone, by scipy, with a matrix written out here."""
    rows = 24
    x = smooth(rows)
    found, told = changed(x, rng(rows), 0.5)
    centre = (SIDE - 1) / 2
    inside = slice(10, 22)
    for image, drawn, numbers in zip(x, found, told.double().numpy(), strict=True):
        mirror, upside, scale, cosine, sine, along_x, along_y, move_x, move_y = numbers
        direction, length = math.atan2(along_y, along_x) / 2, math.hypot(along_x, along_y)
        turn = math.atan2(sine, cosine + 1)
        matrix = (
            np.diag([1 - 2 * mirror, 1 - 2 * upside])
            * math.exp(-STRETCH * scale)
            @ rotation(turn)
            @ rotation(direction)
            @ np.diag([math.exp(-STRETCH * length), math.exp(STRETCH * length)])
            @ rotation(-direction)
        )
        shift = matrix @ np.array([MOVE * SIDE * move_x, MOVE * SIDE * move_y])
        flipped = matrix[::-1, ::-1]  # scipy's first axis is y
        offset = centre + shift[::-1] - flipped @ np.array([centre, centre])
        wanted = ndimage.affine_transform(image[0].numpy(), flipped, offset, order=1, mode="mirror")
        at = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij")).reshape(2, -1)
        source = (flipped @ at + offset[:, None]).reshape(2, SIDE, SIDE)
        seen = ((source >= 0) & (source <= SIDE - 1)).all(axis=0)[inside, inside]
        difference = np.abs(wanted - drawn[0].numpy())[inside, inside][seen]
        assert seen.any()
        assert difference.max() < 1e-3


def rotation(angle: float) -> np.ndarray:
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"network": {"kind": "unet", "channels": (8, 16), "head_dim": 8}}, "unet is not told of changes"),
        ({"network": {"kind": "ddpmpp", "width": 8, "levels": (1, 2)}}, None),
    ],
)
def test_a_network_that_is_not_told_is_refused(settings: dict[str, object], reason: str | None) -> None:
    config = Config.model_validate({**settings, "objective": {"kind": "edm", "augment": 0.12}})
    found = config.problems(DataSpec(3, 8, 8))
    assert found == [] if reason is None else reason in found[0]
    assert CHANGES == 9

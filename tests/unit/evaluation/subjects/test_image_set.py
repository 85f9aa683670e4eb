"""Sets of images remember what they have decoded, and give the same images with and without memory."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from sfumato.core.batch import DataSpec
from sfumato.evaluation.subjects import image_set
from sfumato.evaluation.subjects.image_set import ImageBlock, ImageSet

SIZE = 1_100


class Numbered(ImageSet):
    """Image i is filled with i; those of `damaged` are left out."""

    def __init__(self, damaged: tuple[int, ...] = ()) -> None:
        self.spec = DataSpec(1, 2, 2, ("even", "odd"))
        self.size = SIZE
        self.digest = "numbered"
        self.damaged = damaged
        self.decoded: list[int] = []

    def _read(self, first: int, stop: int) -> ImageBlock:
        rows = np.array([row for row in range(first, stop) if row not in self.damaged], np.int64)
        self.decoded += rows.tolist()
        return (rows[:, None, None, None] % 251 * np.ones((1, 2, 2, 1), np.int64)).astype(np.uint8), rows % 2


def rows_of(block: ImageBlock) -> list[int]:
    assert block[1] is not None and len(block[0]) == len(block[1])
    return block[0][:, 0, 0, 0].tolist()


RANGES = [(0, SIZE), (64, 128), (500, 530), (512, 1_024), (1_099, 1_100), (1_000, 5_000), (3, 4)]


def test_everything_is_decoded_once_while_it_is_remembered() -> None:
    plain, remembering = Numbered(), Numbered()
    with remembering.remembering():
        for first, stop in RANGES:
            assert rows_of(remembering.read(first, stop)) == rows_of(plain.read(first, stop))
        whole = [row for block in remembering.blocks() for row in rows_of(block)]
        assert whole == [row % 251 for row in range(SIZE)]
        assert sorted(remembering.decoded) == list(range(SIZE))
    remembering.read(0, 10)
    assert len(remembering.decoded) == SIZE + 10, "the memory ends with the block"


def test_only_what_is_asked_for_is_decoded() -> None:
    images = Numbered()
    with images.remembering():
        images.read(600, 601)
    assert images.decoded == list(range(512, 1_024))


def test_images_that_are_left_out_stay_left_out() -> None:
    plain, remembering = Numbered((5, 700)), Numbered((5, 700))
    with remembering.remembering():
        for first, stop in RANGES:
            assert rows_of(remembering.read(first, stop)) == rows_of(plain.read(first, stop))
        assert sum(len(images) for images, _ in remembering.blocks()) == SIZE - 2


def test_a_set_that_does_not_fit_is_read_as_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_set, "MOST_REMEMBERED", 4 * SIZE - 1)
    images = Numbered()
    with images.remembering():
        images.read(0, 10)
        images.read(0, 10)
    assert images.decoded == [*range(10), *range(10)]


def test_a_copy_in_another_process_has_no_memory() -> None:
    images = Numbered()
    with images.remembering():
        images.read(0, SIZE)
        copy = pickle.loads(pickle.dumps(images))  # noqa: S301
    assert len(pickle.dumps(images)) < 20_000
    copy.read(0, 10)
    assert copy.decoded[SIZE:] == list(range(10))

"""Memory of pixels: never two owners at once, and used again when nobody owns it."""

from __future__ import annotations

import threading
from collections import deque

import numpy as np
import pytest

from sfumato.data.reading.buffers import Slabs

ROWS = (64, 32, 32, 3)


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, ROWS, dtype=np.uint8)


def test_a_copy_is_equal_and_writable() -> None:
    slabs = Slabs()
    for array in (pixels(0), pixels(1)[:, ::-1], pixels(2).astype(np.float32)[..., 0], np.arange(3)):
        copied = slabs.copy(array)
        np.testing.assert_array_equal(copied, array)
        assert copied.dtype == array.dtype and copied.flags.c_contiguous and copied.flags.writeable
        assert not np.may_share_memory(copied, array)


@pytest.mark.parametrize("view", [lambda a: a[3:5], lambda a: a.reshape(-1)[::2], memoryview])
def test_memory_is_used_again_only_when_no_view_is_left(view: object) -> None:
    slabs = Slabs()
    kept = view(slabs.copy(pixels(0)))  # type: ignore[operator]
    before = np.array(kept)
    again = slabs.copy(pixels(1))
    np.testing.assert_array_equal(np.array(kept), before)
    assert len(slabs) == 2
    del kept
    slabs.copy(pixels(2))
    assert len(slabs) == 2
    np.testing.assert_array_equal(again, pixels(1))


def test_a_slab_too_small_is_left_alone() -> None:
    slabs = Slabs()
    slabs.copy(pixels(0)[:32])
    slabs.copy(pixels(0))
    slabs.copy(pixels(0)[:40])
    assert len(slabs) == 2


def test_threads_do_not_share_a_slab() -> None:
    slabs, wrong = Slabs(), []

    def work(number: int) -> None:
        alive: deque[tuple[int, np.ndarray]] = deque(maxlen=3)
        for turn in range(200):
            value = (number * 71 + turn) % 256
            alive.append((value, slabs.copy(np.full(ROWS, value, np.uint8))))
            wrong.extend(value for value, copied in alive if not (copied == value).all())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(slabs) <= 4 * 4

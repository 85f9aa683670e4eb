"""A set that is sorted by class is noticed from its labels."""

from __future__ import annotations

import numpy as np
import pytest

from sfumato.data.order.class_mixing import warning

SORTED = np.repeat(np.arange(100), 200)


def shards(labels: np.ndarray, count: int = 4) -> list[np.ndarray]:
    return np.array_split(labels, count)


def test_sorted_shards_are_reported_with_what_is_to_be_expected() -> None:
    found = warning(shards(SORTED), 100, window=500)
    assert found is not None and "500 consecutive ones have 3 classes" in found
    expected = 100 * (1 - (1 - 1 / 100) ** 500)
    assert f"where {expected:.0f} are" in found and "data.shuffle_chunk=8" in found


def test_one_class_a_shard_is_reported_however_its_samples_lie() -> None:
    assert warning([np.full(300, label) for label in range(20)], 20) is not None


@pytest.mark.parametrize(
    "labels", [np.random.default_rng(0).permutation(SORTED), np.full(400, -1), SORTED[:0]]
)
def test_mixed_shards_and_those_without_classes_are_not(labels: np.ndarray) -> None:
    assert warning(shards(labels), 100, window=500) is None


def test_an_uneven_but_mixed_set_is_not() -> None:
    labels = np.random.default_rng(1).choice(100, size=20_000, p=np.r_[0.9, np.full(99, 0.1 / 99)])
    assert warning(shards(labels), 100, window=500) is None

"""The training order: every sample at most once an epoch, resumable anywhere, equal for all worker counts."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.data.order.epochs import Block, Order, permutation
from sfumato.data.order.micro_batches import rank_streams
from sfumato.errors import ConfigError

ORDERS = st.builds(
    lambda seed, shards, window, data_streams, chunk: Order(
        seed, shards, min(data_streams, sum(shards)), window, chunk=chunk
    ),
    st.integers(0, 2**31),
    st.lists(st.integers(1, 30), min_size=1, max_size=6),
    st.integers(1, 40),
    st.integers(1, 9),
    st.none() | st.integers(1, 12),
)


def samples_of(block: Block) -> list[tuple[int, int]]:
    flat = [(part.shard, part.first + row) for part in block.ranges for row in range(part.count)]
    return [flat[place] for place in block.permutation()][block.skip :]


def stream(order: Order, number: int, position: int, count: int) -> list[tuple[int, int]]:
    out: list[tuple[int, int]] = []
    for block in order.blocks(number, position):
        out += samples_of(block)
        if len(out) >= count:
            return out[:count]
    raise AssertionError


@given(ORDERS, st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_an_epoch_holds_every_sample_at_most_once(order: Order, epoch: int) -> None:
    start = epoch * order.stream_length
    seen = [
        sample
        for number in range(order.streams)
        for sample in stream(order, number, start, order.stream_length)
    ]
    everything = {(s, i) for s, count in enumerate(order.shard_samples) for i in range(count)}
    assert len(seen) == len(set(seen)) == order.total - order.total % order.streams
    assert set(seen) <= everything


@given(ORDERS, st.integers(0, 200), st.integers(1, 50))
@settings(max_examples=60, deadline=None)
def test_a_start_at_any_position_continues_the_same_sequence(order: Order, position: int, count: int) -> None:
    number = order.streams - 1
    whole = stream(order, number, 0, position + count)
    assert stream(order, number, position, count) == whole[position:]
    epoch, shard, index = order.sample_at(number, position)
    assert (shard, index) == whole[position]
    assert epoch == position // order.stream_length


@given(ORDERS, st.integers(0, 100), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_global_batches_are_the_same_for_every_world_size(order: Order, position: int, rows: int) -> None:
    def batch(world_size: int) -> dict[int, list[tuple[int, int]]]:
        return {
            number: stream(order, number, position, rows)
            for rank in range(world_size)
            for number in rank_streams(order.streams, world_size, rank)
        }

    for world_size in range(2, order.streams + 1):
        assert batch(world_size) == batch(1)


def test_epochs_and_seeds_differ_and_the_samples_left_out_change() -> None:
    order = Order(0, [103], streams=4, window=10)
    first = [stream(order, s, 0, 25) for s in range(4)]
    second = [stream(order, s, 25, 25) for s in range(4)]
    assert first != second
    assert first != [stream(Order(1, [103], 4, 10), s, 0, 25) for s in range(4)]
    left_out = []
    for epoch in range(20):
        seen = {sample for s in range(4) for sample in stream(order, s, epoch * 25, 25)}
        left_out.append(frozenset(set(range(103)) - {index for _, index in seen}))
    assert len(set(left_out)) > 10


def test_a_window_is_shuffled_uniformly() -> None:
    places = np.array([permutation(8, seed) for seed in range(4000)])
    counts = np.stack([(places == value).sum(0) for value in range(8)])
    chi_square = ((counts - 500) ** 2 / 500).sum()
    assert chi_square < 100  # 49 degrees of freedom: beyond the 99.99th percentile


def test_the_permutation_is_pinned() -> None:
    """A change of this changes every training run: PCG64's raw output is what numpy promises to keep."""
    assert permutation(10, 12345).tolist() == [7, 0, 1, 5, 4, 6, 8, 3, 2, 9]


def test_an_order_survives_pickling() -> None:
    order = Order(5, [7, 9], 3, 4)
    assert [next(pickle.loads(pickle.dumps(order)).blocks(2, 3))] == [next(order.blocks(2, 3))]  # noqa: S301


@pytest.mark.parametrize(
    ("streams", "window", "names"), [(0, 4, "streams"), (11, 4, "streams"), (2, 0, "window")]
)
def test_what_cannot_be_dealt_is_refused(streams: int, window: int, names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        Order(0, [10], streams, window)


def classes_of_a_batch(chunk: int | None) -> float:
    """Mean number in batches of 256, of 1,000 classes that lie in their order, 1,300 samples each."""
    order = Order(2, [13_000] * 100, streams=8, window=2048, chunk=chunk)
    batches = [
        {
            (shard * 13_000 + index) // 1_300
            for number in range(8)
            for shard, index in stream(order, number, position, 32)
        }
        for position in (0, 70_016, 3_000_000)
    ]
    return float(np.mean([len(found) for found in batches]))


def test_chunks_mix_a_set_that_is_sorted_by_class() -> None:
    """Expected of 256 independent draws: 1000 (1 - (1 - 1/1000)^256) = 226; of runs of eight, 214."""
    assert classes_of_a_batch(None) < 40
    assert classes_of_a_batch(1) == pytest.approx(226, abs=12)
    assert classes_of_a_batch(8) == pytest.approx(214, abs=14)


def test_without_chunks_the_order_is_that_of_version_0_1() -> None:
    order = Order(7, [5, 3, 9], 2, 4)
    rows = [(2, row) for row in (3, 4, 1, 2, 5, 8, 6, 7, 5, 3, 6, 7)]
    assert stream(order, 0, 0, 8) + stream(order, 1, 9, 4) == rows

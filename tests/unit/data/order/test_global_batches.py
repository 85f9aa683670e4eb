"""Global batches as sample numbers: equal for all worker counts and interruptions, complete epochs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import islice

from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.data.format.manifest import ImageInfo, ShardInfo
from sfumato.data.order.epochs import Block
from sfumato.data.order.global_batches import Deal
from sfumato.data.order.micro_batches import rank_streams
from sfumato.data.order.pools import Pool

Sample = tuple[int, int, int]
SHARD = ShardInfo(name="s.tar", samples=1, bytes=1, sha256="0" * 64)


def pool(samples: tuple[int, ...], weight: float, height: int) -> Pool:
    image = ImageInfo(channels=1, height=height, width=4)
    return Pool("nowhere", image, 0, (SHARD,) * len(samples), samples, weight)


SHARDS = st.lists(st.integers(1, 25), min_size=1, max_size=4).map(tuple)
POOLS = st.lists(
    st.builds(pool, SHARDS, st.floats(0.1, 5), st.sampled_from([4, 8])), min_size=2, max_size=4
).map(lambda pools: sorted(pools, key=lambda one: one.size))
SINGLE = SHARDS.map(lambda samples: [pool(samples, 1.0, 4)])
CASES = st.fixed_dictionaries(
    {"seed": st.integers(0, 2**31), "streams": st.integers(1, 6), "window": st.integers(1, 30)}
)


def deal_of(pools: list[Pool], case: dict[str, int], rows: int) -> Deal:
    streams = min(case["streams"], *(one.total for one in pools))
    return Deal(case["seed"], pools, streams, case["window"], rows)


def samples_of(block: Block) -> list[Sample]:
    flat = [(block.pool, part.shard, part.first + row) for part in block.ranges for row in range(part.count)]
    return [flat[place] for place in block.permutation()][block.skip :]


def dealt(deal: Deal, own: range, batch: int) -> Iterator[dict[int, list[Sample]]]:
    """What each stream gives to the global batches, by walking the blocks in the order they come."""
    blocks = deal.blocks(own, batch)
    waiting: defaultdict[tuple[int, int], list[Sample]] = defaultdict(list)
    while True:
        share: dict[int, list[Sample]] = {}
        for stream in own:
            share[stream] = []
            for number in deal.pools_of_rows(batch, stream).tolist():
                while not waiting[stream, number]:
                    block = next(blocks)
                    waiting[block.stream, block.pool] += samples_of(block)
                share[stream].append(waiting[stream, number].pop(0))
        yield share
        batch += 1


@given(st.one_of(SINGLE, POOLS), CASES, st.integers(1, 5), st.integers(0, 60))
@settings(max_examples=40, deadline=None)
def test_workers_and_interruptions_change_no_global_batch(
    pools: list[Pool], case: dict[str, int], rows: int, start: int
) -> None:
    deal = deal_of(pools, case, rows)
    streams = min(case["streams"], *(one.total for one in pools))
    alone = list(islice(dealt(deal, range(streams), 0), start + 6))
    for world_size in range(1, streams + 1):
        together: list[dict[int, list[Sample]]] = [{} for _ in range(6)]
        for rank in range(world_size):
            for step, share in enumerate(
                islice(dealt(deal, rank_streams(streams, world_size, rank), start), 6)
            ):
                together[step] |= share
        assert together == alone[start:]


@given(SINGLE, CASES, st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_an_epoch_of_batches_holds_every_sample_at_most_once(
    pools: list[Pool], case: dict[str, int], rows: int
) -> None:
    deal = deal_of(pools, case, rows)
    streams = min(case["streams"], pools[0].total)
    length = pools[0].total // streams
    lanes: defaultdict[int, list[Sample]] = defaultdict(list)
    for share in islice(dealt(deal, range(streams), 0), -(-2 * length // rows)):
        for stream, part in share.items():
            lanes[stream] += part
    for epoch in range(2):
        seen = [s for part in lanes.values() for s in part[epoch * length : (epoch + 1) * length]]
        assert len(seen) == len(set(seen)) == pools[0].total - pools[0].total % streams


@given(st.one_of(SINGLE, POOLS), CASES, st.integers(1, 5), st.integers(0, 300))
@settings(max_examples=60, deadline=None)
def test_a_resume_reads_again_less_than_a_window_a_stream(
    pools: list[Pool], case: dict[str, int], rows: int, start: int
) -> None:
    deal = deal_of(pools, case, rows)
    streams = min(case["streams"], *(one.total for one in pools))
    skipped: Counter[int] = Counter()
    lanes = set()
    for block in islice(deal.blocks(range(streams), start), 60):
        lane = (block.stream, block.pool)
        assert not (block.skip and lane in lanes)  # only the first block of a pool may begin inside
        lanes.add(lane)
        skipped[block.stream] += block.skip
    assert all(rows <= case["window"] + len(pools) for rows in skipped.values())
    assert len(pools) > 1 or all(rows < case["window"] for rows in skipped.values())


def test_one_pool_is_its_order_in_rounds() -> None:
    """What recipes were trained on before there were pools stays what it was."""
    deal = Deal(3, [pool((50, 21, 30), 1.0, 4)], streams=5, window=8, rows=11)
    blocks = list(islice(deal.blocks([1, 3], 1), 8))
    assert [block.stream for block in blocks] == [1, 3] * 4
    assert [(block.epoch, block.index, block.skip) for block in blocks[::2]] == [
        (0, 1, 3),
        (0, 2, 0),
        (1, 0, 0),
        (1, 1, 0),
    ]

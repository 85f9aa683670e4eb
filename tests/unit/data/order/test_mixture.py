"""Several pools: proportions, one shape a batch, balanced classes; resumable, equal for all workers."""

from __future__ import annotations

import shutil
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato import recipe
from sfumato.core.batch import MicroBatch
from sfumato.data.config import DataSettings, MixSettings
from sfumato.data.format.manifest import Manifest
from sfumato.data.order.global_batches import Deal
from sfumato.data.order.mixture import Turns
from sfumato.data.order.pools import content_digest, pools_of
from sfumato.data.packing.pack import pack
from sfumato.data.packing.sources.npz import NpzSource
from sfumato.data.reading import local_reader
from sfumato.errors import ConfigError, DataError

BATCH, STREAMS, SEED = 24, 4, 11
ROWS = BATCH // STREAMS

WEIGHTS = st.lists(st.floats(0.01, 10), min_size=1, max_size=6)


@given(WEIGHTS, st.integers(0, 2**31), st.integers(0, 5000), st.integers(0, 2500))
@settings(max_examples=50, deadline=None)
def test_turns_are_the_same_walked_and_jumped(
    weights: list[float], seed: int, start: int, count: int
) -> None:
    turns = Turns(weights, seed)
    walked = Turns(weights, seed).between(0, start + count)
    assert np.array_equal(turns.between(start, start + count), walked[start:])
    assert np.array_equal(turns.before(start), np.bincount(walked[:start], minlength=len(weights)))
    for competitor in range(len(weights)):
        own = np.flatnonzero(walked == competitor)
        for number in {0, len(own) // 2, len(own) - 1} & set(range(len(own))):
            assert turns.turn_of(competitor, number) == own[number]


@given(WEIGHTS, st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_proportions_are_those_of_the_weights(weights: list[float], seed: int) -> None:
    turns = Turns(weights, seed)
    had = turns.before(7 * turns.length) / (7 * turns.length)
    wanted = np.array(weights) / sum(weights)
    slack = max(1, len(weights) - 1) / turns.length  # roundings, and one turn at least for everybody
    assert np.all(np.abs(had - wanted) <= slack + 1e-9)
    assert Turns([0.7, 0.3], seed).before(1000).tolist() == [700, 300]


def numbered(folder: Path, first: int, labels: list[int], size: tuple[int, int] = (2, 3)) -> Path:
    """Images that carry their own number in their pixels."""
    folder.mkdir(parents=True)
    pixels = np.zeros((len(labels), *size), np.uint8)
    pixels[:, 0, 0] = np.arange(first, first + len(labels))
    np.savez(folder / "in.npz", x=pixels, y=np.array(labels))
    pack(NpzSource(path=str(folder / "in.npz")), folder / "data", shard_size=40)
    return folder / "data"


def reading(folder: Path, images: int = 0, rank: int = 0, world_size: int = 1, **options: Any) -> Any:
    recipe = DataSettings(path=str(folder), streams=STREAMS, shuffle_window=16, **options)
    manifest = Manifest.load(folder)
    return local_reader.read(
        recipe, manifest, seed=SEED, batch=BATCH, images=images, rank=rank, world_size=world_size
    )


def numbers(batch: MicroBatch) -> list[int]:
    return batch.batch["image"][:, 0, 0, 0].tolist()


def rows_by_stream(parts: list[MicroBatch]) -> dict[int, list[int]]:
    """The rows of the streams of one rank's share."""
    (micro,) = parts
    rows = numbers(micro)
    return {piece.stream: rows[at * ROWS : (at + 1) * ROWS] for at, piece in enumerate(micro.pieces)}


def assert_independent_of_workers_and_interruption(folder: Path, steps: int, **options: Any) -> None:
    alone = [rows_by_stream(parts) for parts in islice(reading(folder, **options), steps)]
    for world_size in (2, 3, 4):
        ranks = [reading(folder, rank=rank, world_size=world_size, **options) for rank in range(world_size)]
        for step in range(steps):
            together = {k: v for rank in ranks for k, v in rows_by_stream(next(rank)).items()}
            assert together == alone[step]
    for start in (1, 7, steps - 6):
        resumed = reading(folder, images=start * BATCH, **options)
        assert [rows_by_stream(next(resumed)) for _ in range(5)] == alone[start : start + 5]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    return numbered(folder / "a", 0, [0, 1] * 60), numbered(folder / "b", 150, [1, 0] * 35)


def test_data_sets_are_mixed_in_their_proportions(pair: tuple[Path, Path]) -> None:
    one, other = pair
    mix = (MixSettings(path=str(other), weight=0.25),)
    assert_independent_of_workers_and_interruption(one, 40, mix=mix)
    # Every stream keeps the proportion by itself, exactly over a cycle of 1,000 rows.
    seen: dict[int, list[int]] = {stream: [] for stream in range(STREAMS)}
    for parts in islice(reading(one, mix=mix), 167):
        for stream, rows in rows_by_stream(parts).items():
            seen[stream] += rows
    for rows in seen.values():
        assert sum(number >= 150 for number in rows[:1000]) == 200
    # Each set keeps epochs of its own: in the first of the smaller one nothing comes twice.
    for stream, rows in seen.items():
        small = [number for number in rows if number >= 150]
        assert len(set(small[: 70 // STREAMS])) == 70 // STREAMS, stream
    first = [n for rows in seen.values() for n in [m for m in rows if m >= 150][: 70 // STREAMS]]
    assert len(first) == len(set(first)) == 68  # all but 70 mod 4


def test_rare_classes_come_as_often_as_others(tmp_path: Path) -> None:
    folder = numbered(tmp_path / "rare", 0, [0] * 150 + [1] * 30 + [2] * 3)
    assert_independent_of_workers_and_interruption(folder, 30, balance="class")
    labels: Counter[int] = Counter()
    rare: Counter[int] = Counter()
    for (micro,) in islice(reading(folder, balance="class"), 167):
        labels.update(micro.batch["label"].tolist())
        rare.update(number for number in numbers(micro) if number >= 180)
        assert all(
            (n >= 150) + (n >= 180) == y for n, y in zip(numbers(micro), micro.batch["label"], strict=True)
        )
    assert max(labels.values()) - min(labels.values()) <= 4 * STREAMS  # 1,000 rows a stream
    assert rare.keys() == {180, 181, 182}
    assert min(rare.values()) > 0.7 * max(rare.values())


@pytest.fixture(scope="module")
def bucketed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One data set of three sizes, one size a shard."""
    folder = tmp_path_factory.mktemp("bucketed")
    sizes = {(2, 3): 90, (3, 2): 60, (4, 4): 30}
    (folder / "data").mkdir()
    shards, first = [], 0
    for size, count in sizes.items():
        part = numbered(folder / f"{size}", first, [0] * count, size)
        first += count
        manifest = Manifest.load(part)
        for shard in manifest.shards:
            name = f"{size[0]}x{size[1]}-{shard.name}"
            for file in (shard.name, shard.name.replace(".tar", ".index.arrow")):
                shutil.copy(part / file, folder / "data" / file.replace(shard.name[:-4], name[:-4]))
            shards.append(shard.model_copy(update={"name": name, "image": manifest.image}))
    mixed = manifest.model_copy(update={"shards": tuple(shards)})
    mixed.save(folder / "data")
    return folder / "data"


def test_every_batch_of_a_bucketed_set_has_one_shape(bucketed: Path) -> None:
    assert_independent_of_workers_and_interruption(bucketed, 40)
    shapes: Counter[tuple[int, ...]] = Counter()
    bounds = {(2, 3): (0, 90), (3, 2): (90, 150), (4, 4): (150, 180)}
    for (micro,) in islice(reading(bucketed), 150):
        shape = tuple(micro.batch["image"].shape[2:])
        low, high = bounds[shape]
        assert all(low <= number < high for number in numbers(micro))
        shapes[shape] += 1
    for shape, share in {(2, 3): 1 / 2, (3, 2): 1 / 3, (4, 4): 1 / 6}.items():
        assert abs(shapes[shape] / 150 - share) < 0.12
    # Exactly so over 1,000 batches.
    plan = local_reader.RankPlan(
        DataSettings(path=str(bucketed), streams=STREAMS), Manifest.load(bucketed), SEED, 0, 1
    )
    deal = Deal(SEED, plan.pools, STREAMS, 16, ROWS)
    pools = Counter(int(deal.pools_of_rows(batch, 0)[0]) for batch in range(1000))
    assert [(plan.pools[pool].size, n) for pool, n in sorted(pools.items())] == [
        ((4, 4), 167),
        ((2, 3), 500),
        ((3, 2), 333),
    ]


def test_every_sample_of_a_bucket_comes_once_an_epoch_of_it(bucketed: Path) -> None:
    seen: list[int] = []
    for (micro,) in islice(reading(bucketed), 200):
        if micro.batch["image"].shape[2:] == (3, 2):
            seen += numbers(micro)
    epoch = 60 // STREAMS
    by_stream = np.array(seen).reshape(-1, STREAMS, ROWS).transpose(1, 0, 2).reshape(STREAMS, -1)
    for start in (0, epoch):
        assert sorted(by_stream[:, start : start + epoch].ravel()) == list(range(90, 150))


def test_a_run_is_known_by_what_is_mixed_and_not_by_where_it_lies(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    one, other = pair
    moved = tmp_path / "moved"
    shutil.copytree(other, moved)
    third = numbered(tmp_path / "third", 0, [0, 1] * 10)

    def known(path: Path, weight: float = 0.25) -> tuple[str, str]:
        mix = [{"path": str(path), "weight": weight}]
        job = recipe.parse(
            {
                "name": "mixed",
                "data": {"path": str(one), "mix": mix},
                "model": {"family": "vae"},
                "train": {"images": 100},
            }
        )
        return job.digest(), content_digest(job.data, Manifest.load(one))

    assert known(other) == known(moved)
    assert known(other)[0] == known(third)[0]
    assert known(other)[1] != known(third)[1]
    assert known(other)[0] != known(other, 0.5)[0]
    assert content_digest(DataSettings(path=str(one)), Manifest.load(one)) == Manifest.load(one).digest


def test_sets_that_do_not_fit_together_are_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    one, _ = pair

    def pools(other: Path, **options: Any) -> Any:
        recipe = DataSettings(path=str(one), mix=(MixSettings(path=str(other)),), **options)
        return pools_of(recipe, Manifest.load(one))

    with pytest.raises(ConfigError, match=r"data\.mix: .*3x2.*|data\.mix: .* are 5x5, those of .* 3x2"):
        pools(numbered(tmp_path / "size", 0, [0, 1], (5, 5)))
    with pytest.raises(ConfigError, match=r"data\.mix: .* has 3 classes that are not those of .* \(2\)"):
        pools(numbered(tmp_path / "classes", 0, [0, 1, 2]))
    with pytest.raises(DataError, match=r"nowhere: no manifest\.json"):
        pools(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"data\.text is set, but no sample"):
        pools_of(DataSettings(path=str(one), text=True), Manifest.load(one))
    pixels = tmp_path / "plain.npz"
    np.savez(pixels, x=np.zeros((5, 2, 3), np.uint8))
    pack(NpzSource(path=str(pixels)), tmp_path / "plain")
    with pytest.raises(ConfigError, match=r"data\.balance=class, but .*plain has no labels"):
        pools_of(
            DataSettings(path=str(tmp_path / "plain"), balance="class"), Manifest.load(tmp_path / "plain")
        )

"""Reading by Ray Data gives what reading in process gives, on every rank and after a resume."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import torch

from sfumato.core.batch import MicroBatch
from sfumato.data.config import DataSettings
from sfumato.data.format.manifest import Manifest
from sfumato.data.order.epochs import Block
from sfumato.data.packing.pack import pack
from sfumato.data.reading import ray_reader
from sfumato.data.reading.local_reader import LocalReader, RankPlan
from sfumato.data.reading.ray_reader import DATASET, RankReader, RankStreams
from sfumato.errors import DataError

pytestmark = pytest.mark.usefixtures("ray_local")
BATCH = 64


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "digits"
    pack("digits", folder, shard_size=100)
    return folder


def assert_equal(one: list[MicroBatch], other: list[MicroBatch]) -> None:
    assert [micro.pieces for micro in one] == [micro.pieces for micro in other]
    for mine, theirs in zip(one, other, strict=True):
        assert mine.batch.keys() == theirs.batch.keys() == {"image", "label"}
        assert all(torch.equal(mine.batch[name], theirs.batch[name]) for name in mine.batch)


@pytest.mark.parametrize(
    ("rank", "world_size", "images", "micro_batch", "window"),
    [(0, 1, 0, None, 2048), (1, 2, 37 * BATCH, 16, 100), (2, 3, 30 * BATCH, 4, 64)],
)
def test_ray_and_local_readers_agree(
    digits: Path,
    rank: int,
    world_size: int,
    images: int,
    micro_batch: int | None,
    window: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_reader, "_SPAN_ROUNDS", 3)  # so that many spans follow each other
    monkeypatch.setattr(ray_reader, "_FIRST_SPAN_ROWS", 1024)
    monkeypatch.setattr(ray_reader, "_MIN_TASK_ROWS", 64)  # so that no task needs all shards
    settings = DataSettings(path=str(digits), streams=8, shuffle_window=window)
    plan = RankPlan(settings, Manifest.load(digits), 7, rank, world_size)
    by_ray = RankReader(plan).batches(images=images, batch=BATCH, micro_batch=micro_batch)
    here = LocalReader(plan).batches(images=images, batch=BATCH, micro_batch=micro_batch)
    steps = 0
    for one, other in islice(zip(by_ray, here, strict=True), 120):
        assert_equal(one, other)
        steps += 1
    assert steps == 120  # more than four epochs of 1,797
    by_ray.close()


def test_what_a_slow_consumer_does_not_need_soon_is_not_read(
    digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader's clock says that the consumer takes 0.02 s for each chunk, however busy the machine is."""
    now = 1.0
    monkeypatch.setattr(ray_reader, "time", SimpleNamespace(monotonic=lambda: now))
    settings = DataSettings(path=str(digits), streams=8, shuffle_window=64)
    plan = RankPlan(settings, Manifest.load(digits), 7, 0, 1)
    handed_out = 0

    def counted() -> Iterator[Block]:
        nonlocal handed_out
        for block in plan.blocks(0, BATCH):
            handed_out += block.rows
            yield block

    chunks = ray_reader._chunks(plan.readers(), counted(), 1)
    taken = next(chunks).rows
    while taken < 2 * ray_reader._FIRST_SPAN_ROWS:
        taken += next(chunks).rows
        now += 0.02
        a_second = taken / (now - 1.0)
        soon = max(ray_reader._FIRST_SPAN_ROWS, 2 * ray_reader._SPAN_SECONDS * a_second)
        assert handed_out - taken <= soon
    chunks.close()


def test_reading_that_waits_for_its_consumer_takes_no_core(
    digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for one task's rows at a time, so that none runs while the consumer is busy."""
    monkeypatch.setattr(ray_reader, "_HANDED_ON", 1 << 14)
    monkeypatch.setattr(ray_reader, "_STORED", 2)
    settings = DataSettings(path=str(digits), streams=8, shuffle_window=64)
    reading = RankReader(RankPlan(settings, Manifest.load(digits), 7, 0, 1)).batches(images=0, batch=BATCH)
    next(reading)
    time.sleep(2)  # until the task that was started has ended
    before = time.process_time()
    time.sleep(4)
    assert time.process_time() - before < 1, "of all threads, in four seconds"
    reading.close()


def test_a_fault_in_a_read_task_reaches_the_consumer_as_one_line(digits: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(digits)
    for path in digits.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    settings = DataSettings(path=str(tmp_path), streams=4)
    shard = tmp_path / manifest.shards[2].name
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    reading = RankReader(RankPlan(settings, manifest, 0, 0, 1)).batches(images=0, batch=BATCH)
    with pytest.raises(DataError, match=f"^{shard.name}: .*: the shard ends before it"):
        list(islice(reading, 60))
    reading.close()
    shard.unlink()
    reading = RankReader(RankPlan(settings, manifest, 0, 0, 1)).batches(images=0, batch=BATCH)
    with pytest.raises(DataError, match=f"{shard.name}: missing$"):
        list(islice(reading, 60))
    reading.close()


def test_ray_train_hands_each_worker_its_streams(digits: Path, tmp_path: Path) -> None:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    from sfumato.runtime.training.trainer import Trainer

    def sum_of_pixels(config: dict[str, int]) -> float:
        """Over ten global batches and all ranks; nested, so that workers get it by value."""
        import ray.train
        import torch.distributed as dist

        reader = ray.train.get_dataset_shard(DATASET)
        reading = reader.batches(images=config["images"], batch=config["batch"])
        total = torch.zeros(2, dtype=torch.float64)
        for micros in islice(reading, 10):
            for micro in micros:
                total += torch.tensor([micro.batch["image"].double().sum(), micro.rows])
        reading.close()
        dist.all_reduce(total)
        assert total[1] == 10 * config["batch"]
        return float(total[0])

    settings = DataSettings(path=str(digits), streams=8)
    manifest = Manifest.load(digits)
    streams = RankStreams(settings, manifest, seed=3)
    of_ctrl_c = signal.getsignal(signal.SIGINT)  # Ray Train leaves its own
    result = Trainer(
        sum_of_pixels,
        train_loop_config={"images": 5 * BATCH, "batch": BATCH},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(storage_path=str(tmp_path), name="streams"),
        datasets=streams.datasets,
        dataset_config=streams,
        alone=True,
    ).fit()
    signal.signal(signal.SIGINT, of_ctrl_c)
    alone = LocalReader(RankPlan(settings, manifest, 3, 0, 1)).batches(images=5 * BATCH, batch=BATCH)
    expected = sum(float(m.batch["image"].double().sum()) for micros in islice(alone, 10) for m in micros)
    assert result.return_value == pytest.approx(expected, rel=1e-12)


def test_workers_that_hold_every_cpu_read_by_themselves(digits: Path) -> None:
    """Read tasks would find no CPU, and be waited for without end."""
    settings, manifest = DataSettings(path=str(digits), streams=8), Manifest.load(digits)
    cpus = ray.cluster_resources()["CPU"]

    def readers(world_size: int, cpus_per_worker: float) -> list[RankReader | LocalReader]:
        streams = RankStreams(settings, manifest, 3, cpus_per_worker=cpus_per_worker)
        return [rank[DATASET] for rank in streams.configure({DATASET: None}, world_size)]

    assert all(isinstance(reader, RankReader) for reader in readers(2, (cpus - 1) / 2))
    alone = readers(2, cpus / 2)
    assert all(isinstance(reader, LocalReader) for reader in alone)
    for rank, reader in enumerate(alone):
        expected = LocalReader(RankPlan(settings, manifest, 3, rank, 2)).batches(images=0, batch=BATCH)
        assert_equal(next(reader.batches(images=0, batch=BATCH)), next(expected))

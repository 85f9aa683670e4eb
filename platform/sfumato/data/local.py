"""Reading in this process: what Ray Data does for a training run, for tests, tools and a single worker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sfumato.data.batches import MicroBatches
from sfumato.data.blocks import BlockReader, Columns, decode_fault
from sfumato.data.config import DataSettings
from sfumato.data.faults import FaultLog, OnError
from sfumato.data.manifest import Manifest
from sfumato.data.order import Block, Order, Range
from sfumato.data.plan import plan, rank_streams


@dataclass(frozen=True, slots=True)
class RankPlan:
    """What one rank reads, whoever reads it: in this process or by Ray Data."""

    settings: DataSettings
    manifest: Manifest
    seed: int
    rank: int
    world_size: int

    def blocks(self, images: int, batch: int) -> Iterator[Block]:
        """The rank's blocks in the order in which it needs them, from the global batch at `images` on."""
        settings = self.settings
        order = Order(self.seed, self.manifest.shard_samples, settings.streams, settings.shuffle_window)
        own = rank_streams(settings.streams, self.world_size, self.rank)
        return order.interleaved(own, images // batch * (batch // settings.streams))

    def reader(self) -> BlockReader:
        return BlockReader.of(self.settings.path, self.manifest)

    def assemble(
        self, chunks: Iterator[Columns], *, images: int, batch: int, micro_batch: int | None
    ) -> MicroBatches:
        """Micro-batches from the rows of `blocks(images, batch)`."""
        return MicroBatches(
            chunks,
            self.blocks(images, batch),
            settings=self.settings,
            cuts=plan(batch, self.settings.streams, self.world_size, self.rank, micro_batch),
            rows_per_stream=batch // self.settings.streams,
        )


@dataclass(frozen=True, slots=True)
class LocalReader:
    """The micro-batches of one rank, read in this process; the counterpart of `ray_source.RankReader`."""

    plan: RankPlan

    def batches(self, *, images: int, batch: int, micro_batch: int | None = None) -> MicroBatches:
        """One list of micro-batches a global batch, without end, from the one at `images` on."""
        reader = self.plan.reader()
        chunks = (reader.read(block) for block in self.plan.blocks(images, batch))
        return self.plan.assemble(chunks, images=images, batch=batch, micro_batch=micro_batch)


def read(
    settings: DataSettings,
    manifest: Manifest,
    *,
    seed: int,
    batch: int,
    micro_batch: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    images: int = 0,
) -> MicroBatches:
    """`LocalReader.batches` in one call."""
    reader = LocalReader(RankPlan(settings, manifest, seed, rank, world_size))
    return reader.batches(images=images, batch=batch, micro_batch=micro_batch)


def read_all(
    folder: str | Path,
    rows: int = 512,
    *,
    on_error: OnError = "fail",
    max_errors: int = 100,
    first: int = 0,
    stop: int | None = None,
) -> Iterator[Columns]:
    """Samples `first .. stop - 1` of a data set in the manifest's order, up to `rows` at a time.

    Columns are `image` uint8 [n,H,W,C] and `label` int64 [n] where there are classes. With `skip`, a
    sample that cannot be used is left out. Raises DataError as the settings say.
    """
    manifest = Manifest.load(folder)
    reader = BlockReader.of(str(folder), manifest)
    log = FaultLog(on_error, max_errors)
    for part in _parts(manifest, rows, first, manifest.samples if stop is None else stop):
        columns = reader.rows((part,), np.arange(part.count))
        fault = columns.pop("fault")
        for row in np.flatnonzero(fault != ""):
            log.add(decode_fault(str(fault[row])))
        yield {name: column[fault == ""] for name, column in columns.items()}


def _parts(manifest: Manifest, rows: int, first: int, stop: int) -> Iterator[Range]:
    """The wanted samples as ranges that end where a shard does."""
    start = 0
    for number, shard in enumerate(manifest.shards):
        low, high = max(first - start, 0), min(stop - start, shard.samples)
        for at in range(low, high, rows):
            yield Range(number, at, min(rows, high - at))
        start += shard.samples

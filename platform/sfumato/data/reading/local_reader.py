"""Reads in this process what Ray Data reads for a training run: for tests, tools and a single worker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from sfumato.data.columns import carries_text
from sfumato.data.config import DataSettings
from sfumato.data.format.columns import TEXT
from sfumato.data.format.faults import IN_PYTHON_OR_RECIPES, FaultLog, OnError
from sfumato.data.format.manifest import Manifest
from sfumato.data.order.epochs import Block, Range
from sfumato.data.order.global_batches import Deal
from sfumato.data.order.micro_batches import plan, rank_streams
from sfumato.data.order.pools import Pool, pools_of, stages_of
from sfumato.data.reading.batches import Collate, MicroBatches, to_batch
from sfumato.data.reading.block_reader import BlockReader, PoolReaders
from sfumato.data.reading.chunks import Chunk, Columns
from sfumato.data.reading.transforms import Augmentation


@dataclass(frozen=True)
class RankPlan:
    """What one rank reads, in this process or with Ray Data."""

    settings: DataSettings
    manifest: Manifest
    seed: int
    rank: int
    world_size: int
    pools: tuple[Pool, ...] = field(default=(), repr=False)
    """The result of `pools_of`; computed here unless given."""

    def __post_init__(self) -> None:
        if not self.pools:
            object.__setattr__(self, "pools", pools_of(self.settings, self.manifest))

    def blocks(self, images: int, batch: int) -> Iterator[Block]:
        """The rank's blocks in the order it needs them, from the global batch at `images` on."""
        own = rank_streams(self.settings.streams, self.world_size, self.rank)
        return self._deal(batch).blocks(own, images // batch)

    def readers(self) -> PoolReaders:
        """Readers of the blocks."""
        settings = self.settings
        augmentation = Augmentation(settings.transforms, self.seed) if settings.transforms else None
        columns = self.pools[0].columns
        text = carries_text(settings) and TEXT not in columns
        return PoolReaders(
            {
                number: BlockReader.of_pool(
                    pool, augmentation, text=text, seed=self.seed, captions=settings.captions
                )
                for number, pool in enumerate(self.pools)
            }
        )

    def assemble(
        self,
        chunks: Iterator[Chunk],
        *,
        images: int,
        batch: int,
        micro_batch: int | None = None,
        collate: Collate | None = None,
    ) -> MicroBatches:
        """Micro-batches from the chunks of `blocks(images, batch)`."""
        return MicroBatches(
            chunks,
            self.blocks(images, batch),
            settings=self.settings,
            cuts=plan(batch, self.settings.streams, self.world_size, self.rank, micro_batch),
            pools_of_rows=self._deal(batch).pools_of_rows,
            first=images // batch,
            collate=collate or partial(to_batch, images=("image", *self.pools[0].images)),
        )

    def _deal(self, batch: int) -> Deal:
        settings = self.settings
        rows = batch // settings.streams
        window, chunk = settings.shuffle_window, settings.shuffle_chunk
        stages = stages_of(settings, self.pools, batch)
        return Deal(self.seed, self.pools, settings.streams, window, rows, chunk, stages)


@dataclass(frozen=True, slots=True)
class LocalReader:
    """The micro-batches of one rank, read in this process; the counterpart of `ray_reader.RankReader`."""

    plan: RankPlan

    def batches(
        self, *, images: int, batch: int, micro_batch: int | None = None, collate: Collate | None = None
    ) -> MicroBatches:
        """One list of micro-batches per global batch, without end, from the one at `images` on."""
        readers = self.plan.readers()
        chunks = (chunk for block in self.plan.blocks(images, batch) for chunk in readers.chunks(block))
        return self.plan.assemble(
            chunks, images=images, batch=batch, micro_batch=micro_batch, collate=collate
        )


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
    manifest: Manifest | None = None,
    text: bool = False,
    columns: Sequence[str] = (),
) -> Iterator[Columns]:
    """Samples `first .. stop - 1` of a data set in the manifest's order, up to `rows` at a time.

    `manifest` is the folder's own, or one of some of its shards; null loads it.

    Columns are `image` uint8 [n,H,W,C], `label` int64 [n] if there are classes, with `text` the captions,
    objects [n], empty if there is none, and further ones that `columns` names; of several texts the first.
    Images of different sizes come in separate chunks. With `skip`, a sample that
    cannot be used is left out. Raises DataError as the settings require.
    """
    manifest = manifest or Manifest.load(folder)
    log = FaultLog(on_error, max_errors, IN_PYTHON_OR_RECIPES)
    for part in _parts(manifest, rows, first, manifest.samples if stop is None else stop):
        reader = BlockReader.of_shard(str(folder), manifest, part.shard, text=text, columns=columns)
        found, faults = reader.as_they_are(part)
        for fault in faults:
            log.add(fault)
        yield found


def _parts(manifest: Manifest, rows: int, first: int, stop: int) -> Iterator[Range]:
    """The wanted samples as ranges, none of which crosses the end of a shard."""
    start = 0
    for number, shard in enumerate(manifest.shards):
        low, high = max(first - start, 0), min(stop - start, shard.samples)
        for at in range(low, high, rows):
            yield Range(number, at, min(rows, high - at))
        start += shard.samples

"""Reading one block: byte ranges of its shards, decoded to uint8 columns, in chunks of a few megabytes.

A sample that cannot be used is replaced by the next good one of its block (in the block's order, going
round), so that positions stay arithmetic; the chunk tells which and why, and the consumer decides whether
that is allowed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sfumato.data.format.encoded import read_arrays
from sfumato.data.format.encoder_info import ArrayInfo
from sfumato.data.format.faults import Fault, ImageFault
from sfumato.data.format.images import bombs_refused, decoded
from sfumato.data.format.index import ShardIndex, load_shard
from sfumato.data.format.manifest import ImageInfo, Manifest, ShardInfo
from sfumato.data.order.epochs import Block, Range
from sfumato.data.order.pools import Pool
from sfumato.data.reading.chunks import Chunk, Columns
from sfumato.data.reading.transforms import U8, Augmentation
from sfumato.data.storage.read import open_file
from sfumato.errors import DataError

_MAX_GAP = 1 << 16
_MAX_READ = 64 << 20
_CHUNK_BYTES = 4 << 20  # at least: from there on NumPy asks for huge pages, and few are faulted in


@dataclass(frozen=True, slots=True)
class BlockReader:
    """Reads blocks of one pool. Small to pickle once `only` has narrowed it to a block's shards."""

    folder: str
    shards: Mapping[int, ShardInfo]
    image: ImageInfo
    classes: int
    label: int | None = None
    text: bool = False
    augmentation: Augmentation | None = None
    arrays: tuple[ArrayInfo, ...] = ()
    """What an encoder made of each sample beforehand, which becomes columns."""

    @classmethod
    def of_shard(cls, folder: str, manifest: Manifest, number: int, *, text: bool = False) -> BlockReader:
        """Every sample of one shard of a data set, as it is."""
        shard = manifest.shards[number]
        return cls(folder, {number: shard}, manifest.image_of(shard), len(manifest.classes), text=text)

    @classmethod
    def of_pool(
        cls,
        pool: Pool,
        augmentation: Augmentation | None,
        *,
        text: bool,
        arrays: tuple[ArrayInfo, ...] = (),
    ) -> BlockReader:
        shards = dict(enumerate(pool.shards))
        return cls(pool.folder, shards, pool.image, pool.classes, pool.label, text, augmentation, arrays)

    def only(self, blocks: Sequence[Block]) -> BlockReader:
        """What these blocks need, of all shards or of what an earlier call left."""
        needed = {part.shard for block in blocks for part in block.ranges}
        return replace(self, shards={shard: self._shard(shard) for shard in sorted(needed)})

    def _shard(self, number: int) -> ShardInfo:
        # A small pool is laid out repeatedly: beyond its last shard comes its first.
        return self.shards.get(number) or self.shards[number % len(self.shards)]

    @property
    def row_bytes(self) -> int:
        return self.image.channels * self.image.height * self.image.width

    def chunks(self, block: Block) -> Iterator[Chunk]:
        """The `block.rows` rows in the block's order, augmented, in chunks that are decoded when asked for.

        Raises DataError for a shard or index that cannot be read, and where no sample of the block is good.
        """
        samples = [sample for part in block.ranges for sample in self._samples(part)]
        in_order = [samples[place] for place in block.permutation().tolist()]
        step = -(-_CHUNK_BYTES // self.row_bytes)
        for first in range(block.skip, len(samples), step):
            yield self._chunk(in_order, range(first, min(first + step, len(samples))), block.epoch)

    def as_they_are(self, part: Range) -> tuple[Columns, list[Fault]]:
        """The good samples of a range in the shard's order, and the faults of the others.

        Raises DataError for a shard or index that cannot be read.
        """
        good: list[_Sample] = []
        faults: list[Fault] = []
        image_NHWC = self._room(part.count)
        with bombs_refused():
            for sample in self._samples(part):
                place_HWC = image_NHWC[len(good)]
                try:
                    _put(place_HWC, self._decoded(sample, place_HWC))
                except ImageFault as fault:
                    faults.append(Fault(sample.shard, sample.key, str(fault)))
                else:
                    good.append(sample)
        return self._columns(good, image_NHWC[: len(good)]), faults

    def _chunk(self, samples: Sequence[_Sample], rows: range, epoch: int) -> Chunk:
        """Rows of the block's samples, which are in its order."""
        chosen: list[_Sample] = []
        faults: list[Fault] = []
        image_NHWC = self._room(len(rows))
        with bombs_refused():
            for row, place_HWC in zip(rows, image_NHWC, strict=True):
                sample = samples[row]
                try:
                    pixels_HWC = self._decoded(sample, place_HWC)
                except ImageFault as fault:
                    faults.append(Fault(sample.shard, sample.key, str(fault)))
                    sample, pixels_HWC = self._next_good(samples, row, place_HWC, faults[-1])
                if self.augmentation is not None:
                    pixels_HWC = self.augmentation.apply(pixels_HWC, epoch, sample.key)
                _put(place_HWC, pixels_HWC)
                chosen.append(sample)
        return Chunk(self._columns(chosen, image_NHWC), tuple(faults))

    def _room(self, rows: int) -> U8:
        return np.empty((rows, self.image.height, self.image.width, self.image.channels), np.uint8)

    def _columns(self, samples: Sequence[_Sample], image_NHWC: U8) -> Columns:
        columns: Columns = {"image": image_NHWC}
        if self.classes:
            columns["label"] = np.array([sample.label for sample in samples], np.int64)
        if self.text:
            columns["text"] = np.array([sample.caption or "" for sample in samples], dtype=object)
        if self.arrays:
            columns |= read_arrays(self.folder, [(s.shard, s.key) for s in samples], self.arrays)
        return columns

    def _next_good(
        self, samples: Sequence[_Sample], row: int, into_HWC: U8, fault: Fault
    ) -> tuple[_Sample, U8]:
        """The next sample, going round, that can be used in place of the faulty one."""
        for sample in (*samples[row + 1 :], *samples[:row]):
            try:
                return sample, self._decoded(sample, into_HWC)
            except ImageFault:
                continue
        raise DataError(
            f"{self.folder}: none of the {len(samples)} samples of a block can be used; the first: {fault}"
        )

    def _decoded(self, sample: _Sample, into_HWC: U8) -> U8:
        if self.classes and not 0 <= sample.label < self.classes:
            if sample.label < 0:
                raise ImageFault("it has no label")
            raise ImageFault(f"label {sample.label} is out of range 0..{self.classes - 1}")
        if len(sample.data) < sample.size:
            raise ImageFault("the shard ends before it")
        return decoded(sample.data, self.image, into_HWC)

    def _samples(self, part: Range) -> Iterator[_Sample]:
        """The bytes of samples of a shard, in as few reads as their gaps allow."""
        shard = self.shards[part.shard]
        index = load_shard(self.folder, shard)
        chosen = self._places(index)[part.first : part.first + part.count]
        offsets, sizes = index.offsets[chosen].tolist(), index.sizes[chosen].tolist()
        keys, labels = index.keys.take(chosen).to_pylist(), index.labels[chosen].tolist()
        captions = index.captions.take(chosen).to_pylist() if self.text else [None] * len(keys)
        with open_file(self.folder, shard.name) as file:
            for first, last in _runs(offsets, sizes):
                start = offsets[first]
                file.seek(start)
                buffer = file.read(offsets[last] + sizes[last] - start)
                for row in range(first, last + 1):
                    at = offsets[row] - start
                    data = buffer[at : at + sizes[row]]
                    yield _Sample(shard.name, keys[row], labels[row], captions[row], sizes[row], data)

    def _places(self, index: ShardIndex) -> NDArray[np.int64]:
        """The pool's samples of a shard, as places in its index."""
        if self.label is None:
            return np.arange(len(index))
        return np.flatnonzero(index.labels == self.label)


@dataclass(frozen=True, slots=True)
class PoolReaders:
    """Reads blocks of any pool of a run."""

    readers: Mapping[int, BlockReader]

    def only(self, blocks: Sequence[Block]) -> PoolReaders:
        """What these blocks need."""
        pools = sorted({block.pool for block in blocks})
        return PoolReaders(
            {pool: self.readers[pool].only([b for b in blocks if b.pool == pool]) for pool in pools}
        )

    def bytes_of(self, block: Block) -> int:
        """Decoded pixels of a block."""
        return block.rows * self.readers[block.pool].row_bytes

    def chunks(self, block: Block) -> Iterator[Chunk]:
        """As `BlockReader.chunks`."""
        reader = self.readers[block.pool]
        yield from reader.only([block]).chunks(block)

    def chunks_or_error(self, block: Block) -> Iterator[Chunk]:
        """As `chunks`, but an error is a value too, and the last."""
        try:
            yield from self.chunks(block)
        except DataError as error:
            yield Chunk({}, error=str(error))


class _Sample(NamedTuple):  # made in half the time of a frozen dataclass
    shard: str
    key: str
    label: int
    caption: str | None
    size: int
    data: bytes


def _put(place_HWC: U8, pixels_HWC: U8) -> None:
    """Copied there, where the decoder has not put them there already."""
    if pixels_HWC is not place_HWC:
        place_HWC[...] = pixels_HWC


def _runs(offsets: Sequence[int], sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last of the runs between which lies more than it is worth to read along."""
    first = 0
    for row in range(1, len(offsets)):
        gap = offsets[row] - offsets[row - 1] - sizes[row - 1]
        if not 0 <= gap <= _MAX_GAP or offsets[row] + sizes[row] - offsets[first] > _MAX_READ:
            yield first, row - 1
            first = row
    yield first, len(offsets) - 1

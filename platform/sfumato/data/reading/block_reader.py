"""Reads one block: byte ranges of its shards, decoded to uint8 columns, in chunks of a few megabytes.

A sample that cannot be used is replaced by the next good one of its block (in the block's order, wrapping
around), so that positions can still be computed. The chunk reports which and why, and the consumer decides
whether that is allowed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sfumato.data.format.arrays import SamplePlace, read_arrays
from sfumato.data.format.columns import TEXT, ColumnInfo
from sfumato.data.format.faults import Fault, ImageFault
from sfumato.data.format.images import bombs_refused, decoded
from sfumato.data.format.index import ShardIndex, load_shard
from sfumato.data.format.manifest import ImageInfo, Manifest, ShardInfo
from sfumato.data.format.ranges import read_ranges
from sfumato.data.order.epochs import Block, Range
from sfumato.data.order.pools import Pool
from sfumato.data.reading import further
from sfumato.data.reading.captions import CaptionSettings, Draw
from sfumato.data.reading.chunks import Chunk, Columns
from sfumato.data.reading.further import Values
from sfumato.data.reading.transforms import U8, Augmentation
from sfumato.errors import DataError

_CHUNK_BYTES = 4 << 20  # at least: from this size NumPy asks for huge pages, which cause few page faults


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
    columns: Mapping[str, ColumnInfo] = field(default_factory=dict)
    """The further columns that are read."""
    images: Mapping[str, ImageInfo] = field(default_factory=dict)
    """The geometry of those that are images."""
    seed: int | None = None
    """The seed for drawing texts; without one, the first of a sample's texts is taken."""
    captions: CaptionSettings | None = None
    """How captions are changed as they are drawn."""

    @classmethod
    def of_shard(
        cls, folder: str, manifest: Manifest, number: int, *, text: bool = False, columns: Sequence[str] = ()
    ) -> BlockReader:
        """Every sample of one shard of a data set, unchanged, with these further columns."""
        shard = manifest.shards[number]
        image = manifest.image_of(shard)
        infos = {name: manifest.columns[name] for name in columns}
        looks = manifest.further_images(infos, image)
        classes = len(manifest.classes)
        return cls(folder, {number: shard}, image, classes, text=text, columns=infos, images=looks)

    @classmethod
    def of_pool(
        cls,
        pool: Pool,
        augmentation: Augmentation | None,
        *,
        text: bool,
        seed: int | None = None,
        captions: CaptionSettings | None = None,
    ) -> BlockReader:
        shards = dict(enumerate(pool.shards))
        return cls(
            pool.folder,
            shards,
            pool.image,
            pool.classes,
            pool.label,
            text,
            augmentation,
            pool.columns,
            pool.images,
            seed,
            captions,
        )

    def only(self, blocks: Sequence[Block]) -> BlockReader:
        """The reader narrowed to what these blocks need."""
        needed = {part.shard for block in blocks for part in block.ranges}
        shards = {shard: self._shard(shard) for shard in sorted(needed)}
        names = {shard.name for shard in shards.values()}
        columns = {name: info.beside(names) for name, info in self.columns.items()}
        return replace(self, shards=shards, columns=columns)

    def _shard(self, number: int) -> ShardInfo:
        # A small pool is laid out repeatedly: after its last shard comes its first.
        return self.shards.get(number) or self.shards[number % len(self.shards)]

    @property
    def row_bytes(self) -> int:
        """Decoded pixels of a sample."""
        looks = (self.image, *self.images.values())
        return sum(look.channels * look.height * look.width for look in looks)

    def chunks(self, block: Block) -> Iterator[Chunk]:
        """The `block.rows` rows in the block's order, augmented, in chunks that are decoded when asked for.

        Raises DataError for a shard or index that cannot be read, and if no sample of the block is good.
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
        rooms = self._rooms(part.count)
        with bombs_refused():
            for sample in self._samples(part):
                places = {name: room[len(good)] for name, room in rooms.items()}
                try:
                    _put(places, self._decoded(sample, places))
                except ImageFault as fault:
                    faults.append(Fault(sample.shard.name, sample.key, str(fault)))
                else:
                    good.append(sample)
        rooms = {name: room[: len(good)] for name, room in rooms.items()}
        return self._columns(good, rooms, Draw(None)), faults

    def _chunk(self, samples: Sequence[_Sample], rows: range, epoch: int) -> Chunk:
        """Rows of the block's samples, which are given in the block's order."""
        chosen: list[_Sample] = []
        faults: list[Fault] = []
        rooms = self._rooms(len(rows))
        with bombs_refused():
            for at, row in enumerate(rows):
                sample, places = samples[row], {name: room[at] for name, room in rooms.items()}
                try:
                    images: Mapping[str, U8] = self._decoded(sample, places)
                except ImageFault as fault:
                    faults.append(Fault(sample.shard.name, sample.key, str(fault)))
                    sample, images = self._next_good(samples, row, places, faults[-1])
                if self.augmentation is not None:
                    images = self.augmentation.apply(images, epoch, sample.key)
                _put(places, images)
                chosen.append(sample)
        return Chunk(self._columns(chosen, rooms, Draw(self.seed, epoch, self.captions)), tuple(faults))

    def _rooms(self, rows: int) -> dict[str, U8]:
        """Memory for the images of some rows, uint8 [rows, H, W, C] by column."""
        looks = {"image": self.image, **self.images}
        return {
            name: np.empty((rows, look.height, look.width, look.channels), np.uint8)
            for name, look in looks.items()
        }

    def _columns(self, samples: Sequence[_Sample], images: Mapping[str, U8], draw: Draw) -> Columns:
        columns: Columns = {"image": images["image"]}
        if self.classes:
            columns["label"] = np.array([sample.label for sample in samples], np.int64)
        if self.text:
            texts = [draw.text(TEXT, s.key, s.caption and [s.caption], None) for s in samples]
            columns[TEXT] = np.array(texts, dtype=object)
        if not self.columns:
            return columns
        held = [(sample.key, sample.values) for sample in samples]
        for name, info in self.columns.items():
            if info.stored == "index":
                columns[name] = further.from_index(name, info, held, draw)
            elif name in self.images:
                columns[name] = images[name]
        arrays = {name: info for name, info in self.columns.items() if name not in columns}
        by = further.drawn_texts(arrays)
        places = [
            SamplePlace(s.shard, s.row, s.key, further.numbers_drawn(by, s.key, s.values, draw))
            for s in samples
        ]
        return columns | read_arrays(self.folder, places, arrays)

    def _next_good(
        self, samples: Sequence[_Sample], row: int, places: Mapping[str, U8], fault: Fault
    ) -> tuple[_Sample, dict[str, U8]]:
        """The next sample, wrapping around, that can be used in place of the faulty one."""
        for sample in (*samples[row + 1 :], *samples[:row]):
            try:
                return sample, self._decoded(sample, places)
            except ImageFault:
                continue
        raise DataError(
            f"{self.folder}: none of the {len(samples)} samples of a block can be used; the first: {fault}"
        )

    def _decoded(self, sample: _Sample, places: Mapping[str, U8]) -> dict[str, U8]:
        """The sample's images, in their `places` if the decoder can write there.

        Raises ImageFault for one that lacks anything.
        """
        if self.classes and not 0 <= sample.label < self.classes:
            if sample.label < 0:
                raise ImageFault("it has no label")
            raise ImageFault(f"label {sample.label} is out of range 0..{self.classes - 1}")
        if len(sample.data) < sample.size:
            raise ImageFault("the shard ends before it")
        further.check(sample.values, self.columns)
        images = {"image": decoded(sample.data, self.image, places["image"])}
        for name, look in self.images.items():
            try:
                images[name] = decoded(sample.members[name], look, places[name])
            except ImageFault as fault:
                raise ImageFault(f"its {name}: {fault}") from fault
        return images

    def _samples(self, part: Range) -> Iterator[_Sample]:
        """The bytes of samples of a shard, in as few reads as their gaps allow."""
        shard = self.shards[part.shard]
        index = load_shard(self.folder, shard)
        chosen = self._places(index)[part.first : part.first + part.count]
        keys, labels = index.keys.take(chosen).to_pylist(), index.labels[chosen].tolist()
        captions = index.captions.take(chosen).to_pylist() if self.text else [None] * len(keys)
        values: Sequence[Values] = [{}] * len(keys)
        if self.columns:
            drawn = {n: info for n, info in further.drawn_texts(self.columns).items() if n in index.extra}
            where = f"{self.folder}: {shard.name}"
            values = list(further.values_of(index, chosen, {**drawn, **self.columns}, where))
        ranges = list(zip(index.offsets[chosen].tolist(), index.sizes[chosen].tolist(), strict=True))
        places = [(row, name, held[name]) for row, held in enumerate(values) for name in self.images]
        places = [place for place in places if place[2] is not None]
        contents = read_ranges(self.folder, shard.name, [*ranges, *(place for _, _, place in places)])
        members: list[dict[str, bytes]] = [{} for _ in keys] if places else [{}] * len(keys)
        for (row, name, _), content in zip(places, contents[len(keys) :], strict=True):
            members[row][name] = content
        for row, key in enumerate(keys):
            yield _Sample(
                shard,
                int(chosen[row]),
                key,
                labels[row],
                captions[row],
                ranges[row][1],
                contents[row],
                values[row],
                members[row],
            )

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
        """The readers narrowed to what these blocks need."""
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
        """As `chunks`, but an error is also a value, the last one."""
        try:
            yield from self.chunks(block)
        except DataError as error:
            yield Chunk({}, error=str(error))


class _Sample(NamedTuple):  # built in half the time of a frozen dataclass
    shard: ShardInfo
    row: int
    key: str
    label: int
    caption: str | None
    size: int
    data: bytes
    values: Values
    members: Mapping[str, bytes]
    """The bytes of its further images."""


def _put(places: Mapping[str, U8], images: Mapping[str, U8]) -> None:
    """Copies them there, unless the decoder wrote them there already."""
    for name, pixels_HWC in images.items():
        if pixels_HWC is not places[name]:
            places[name][...] = pixels_HWC

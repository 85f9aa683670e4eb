"""Reading one block: byte ranges of its shards, decoded to uint8 columns.

Columns of n rows: `image` uint8 [n, H, W, C]; `label` int64 [n] where the set has classes; `fault` str [n],
empty where the row is what the order asked for. A sample that cannot be used is replaced by the next good
one of its block (in the block's order, going round), so that positions stay arithmetic; its row's `fault`
tells which and why, and the consumer decides whether that is allowed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.data.faults import Fault, ImageFault
from sfumato.data.images import U8, bombs_refused, decoded
from sfumato.data.index import load_shard
from sfumato.data.location import open_file
from sfumato.data.manifest import ImageInfo, Manifest, ShardInfo
from sfumato.data.order import Block, Range
from sfumato.errors import DataError

Columns = dict[str, NDArray[Any]]
_MAX_GAP = 1 << 16
_Good = tuple[U8, int]


@dataclass(frozen=True, slots=True)
class BlockReader:
    """Reads blocks of one data set. Small to pickle once `only` has narrowed it to a block's shards."""

    folder: str
    shards: Mapping[int, ShardInfo]
    image: ImageInfo
    classes: int

    @classmethod
    def of(cls, folder: str, manifest: Manifest) -> BlockReader:
        return cls(folder, dict(enumerate(manifest.shards)), manifest.image, len(manifest.classes))

    def only(self, blocks: Sequence[Block]) -> BlockReader:
        needed = {part.shard for block in blocks for part in block.ranges}
        return replace(self, shards={shard: self.shards[shard] for shard in sorted(needed)})

    @property
    def row_bytes(self) -> int:
        return self.image.channels * self.image.height * self.image.width

    def read(self, block: Block) -> Columns:
        """The columns of `block.rows` rows, in the block's order.

        Raises DataError for a shard or index that cannot be read, and where no sample of the block is good.
        """
        return self.rows(block.ranges, block.permutation(), block.skip)

    def read_or_tell(self, block: Block) -> Columns:
        """As `read`, but an error is a value too: blank rows, the first with a fault that has no key."""
        try:
            return self.read(block)
        except DataError as error:
            image = np.zeros((block.rows, self.image.height, self.image.width, self.image.channels), np.uint8)
            fault = np.array([""] * block.rows, dtype=object)
            fault[0] = encode_fault(Fault("", "", str(error)))
            columns: Columns = {"image": image, "fault": fault.astype(np.str_)}
            return columns | ({"label": np.zeros(block.rows, np.int64)} if self.classes else {})

    def rows(self, ranges: Sequence[Range], order_N: NDArray[np.int64], skip: int = 0) -> Columns:
        """Rows `order_N[skip:]` of the concatenated ranges."""
        samples = [sample for part in ranges for sample in self._samples(part)]
        count = len(samples) - skip
        image = np.empty((count, self.image.height, self.image.width, self.image.channels), np.uint8)
        label = np.empty(count, np.int64)
        fault = [""] * count
        with bombs_refused():
            for row in range(count):
                good, fault[row] = self._good(samples, order_N, skip + row)
                image[row], label[row] = good
        columns: Columns = {"image": image, "fault": np.array(fault, dtype=np.str_)}
        return columns | ({"label": label} if self.classes else {})

    def _good(self, samples: Sequence[_Sample], order_N: NDArray[np.int64], at: int) -> tuple[_Good, str]:
        """The sample at a place, or else the next good one, with the fault of the first."""
        told = ""
        for step in range(len(samples)):
            sample = samples[order_N[(at + step) % len(samples)]]
            try:
                return self._decode(sample), told
            except ImageFault as fault:
                told = told or encode_fault(Fault(sample.shard, sample.key, str(fault)))
        raise DataError(
            f"{self.folder}: none of the {len(samples)} samples of a block can be used; "
            f"the first: {decode_fault(told)}"
        )

    def _decode(self, sample: _Sample) -> _Good:
        if self.classes and not 0 <= sample.label < self.classes:
            if sample.label < 0:
                raise ImageFault("it has no label")
            raise ImageFault(f"label {sample.label} is out of range 0..{self.classes - 1}")
        if len(sample.data) < sample.size:
            raise ImageFault("the shard ends before it")
        return decoded(sample.data, self.image), sample.label

    def _samples(self, part: Range) -> Iterator[_Sample]:
        """The bytes of consecutive samples of a shard, in as few reads as their gaps allow."""
        shard = self.shards[part.shard]
        index = load_shard(self.folder, shard)
        chosen = slice(part.first, part.first + part.count)
        offsets, sizes = index.offsets[chosen].tolist(), index.sizes[chosen].tolist()
        keys, labels = index.keys[chosen].to_pylist(), index.labels[chosen].tolist()
        with open_file(self.folder, shard.name) as file:
            for first, last in _runs(offsets, sizes):
                start = offsets[first]
                file.seek(start)
                buffer = file.read(offsets[last] + sizes[last] - start)
                for row in range(first, last + 1):
                    at = offsets[row] - start
                    data = buffer[at : at + sizes[row]]
                    yield _Sample(shard.name, keys[row], labels[row], sizes[row], data)


@dataclass(frozen=True, slots=True)
class _Sample:
    shard: str
    key: str
    label: int
    size: int
    data: bytes


def _runs(offsets: Sequence[int], sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last of the runs between which lies more than it is worth to read along."""
    first = 0
    for row in range(1, len(offsets)):
        if not 0 <= offsets[row] - offsets[row - 1] - sizes[row - 1] <= _MAX_GAP:
            yield first, row - 1
            first = row
    yield first, len(offsets) - 1


def encode_fault(fault: Fault) -> str:
    return json.dumps([fault.where, fault.key, fault.reason])


def decode_fault(text: str) -> Fault:
    return Fault(*json.loads(text))

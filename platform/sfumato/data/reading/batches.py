"""From ordered rows to global batches: the rows that a rank's readers deliver become its micro-batches."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from sfumato.core.batch import Batch, HostBatch, MicroBatch, Piece, Tags, Texts
from sfumato.data.config import DataSettings
from sfumato.data.format.columns import BFLOAT16
from sfumato.data.format.faults import IN_RECIPES, Fault, FaultLog
from sfumato.data.order.epochs import Block
from sfumato.data.order.micro_batches import plan, problems, rank_streams
from sfumato.data.reading.chunks import Chunk, Columns
from sfumato.errors import DataError

if TYPE_CHECKING:
    import torch

__all__ = ["MicroBatches", "plan", "problems", "rank_streams", "to_batch"]

Collate = Callable[[Columns], Batch]
PoolsOfRows = Callable[[int, int], NDArray[np.int64]]
_Lane = tuple[int, int]


def to_batch(columns: Mapping[str, NDArray[Any]], images: Collection[str] = ("image",)) -> HostBatch:
    """A batch on the host, which `core.batch.to_device` turns into the one that a family sees.

    The columns in `images`, uint8 [n, H, W, C], become uint8 [n, C, H, W]; texts become `Texts`, lists of
    words `Tags`; all others tensors of their own type, `label` int64 [n] among them.
    """
    import torch  # here, since read tasks load this module and start sooner without it

    batch: dict[str, torch.Tensor] = {}
    for name, column in columns.items():
        if name in images:
            batch[name] = torch.from_numpy(np.ascontiguousarray(column.transpose(0, 3, 1, 2)))
        elif column.dtype.hasobject:
            words = len(column) > 0 and isinstance(column[0], list)
            batch[name] = cast("torch.Tensor", Tags(column) if words else Texts(column))
        elif column.dtype == BFLOAT16:
            batch[name] = torch.from_numpy(column.view(np.int16).copy()).view(torch.bfloat16)
        else:
            batch[name] = torch.from_numpy(column.copy())  # its memory may be read-only
    return HostBatch(batch, images)


class MicroBatches(Iterator[list[MicroBatch]]):
    """One list of micro-batches per global batch, from the rows of the rank's blocks.

    `blocks` describes the rows that `chunks` delivers: a block's rows are those of one or more whole chunks.
    `pools_of_rows(number of the global batch, stream)` names the pools from which the rows of a global batch
    are drawn. Faults are judged as rows arrive. Ends when the chunks end; call `close` to stop earlier.
    """

    def __init__(
        self,
        chunks: Iterable[Chunk],
        blocks: Iterable[Block],
        *,
        settings: DataSettings,
        cuts: Sequence[tuple[Piece, ...]],
        pools_of_rows: PoolsOfRows,
        first: int,
        collate: Collate = to_batch,
    ) -> None:
        self._chunks = iter(chunks)
        self._blocks = iter(blocks)
        self._cuts = cuts
        self._pools_of_rows = pools_of_rows
        self._batch = first
        self._collate = collate
        self._log = FaultLog(settings.on_error, settings.max_errors, IN_RECIPES)
        self._streams = tuple(dict.fromkeys(piece.stream for cut in cuts for piece in cut))
        self._waiting: defaultdict[_Lane, deque[Columns]] = defaultdict(deque)

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The distinct samples that this rank skipped so far."""
        return self._log.faults

    def __next__(self) -> list[MicroBatch]:
        shares = {stream: self._share(stream) for stream in self._streams}
        self._batch += 1
        return [MicroBatch(self._collate(_gathered(shares, cut)), cut) for cut in self._cuts]

    def close(self) -> None:
        """Stop the readers that supply it."""
        with suppress(AttributeError):  # an iterator other than a generator holds nothing
            self._chunks.close()  # type: ignore[attr-defined]

    def _share(self, stream: int) -> Columns:
        """The rows of a stream that belong to the global batch, each from the pool whose turn it is."""
        pools = self._pools_of_rows(self._batch, stream)
        if (pools == pools[0]).all():
            return self._take((stream, int(pools[0])), len(pools))
        wanted, counts = np.unique(pools, return_counts=True)
        parts = [self._take((stream, int(pool)), int(n)) for pool, n in zip(wanted, counts, strict=True)]
        place = np.empty(len(pools), np.int64)
        place[np.argsort(pools, kind="stable")] = np.arange(len(pools))
        return {name: column[place] for name, column in _joined(parts).items()}

    def _take(self, lane: _Lane, rows: int) -> Columns:
        """The next rows of one pool in one stream."""
        parts: list[Columns] = []
        waiting = self._waiting[lane]
        while rows:
            while not waiting:
                self._receive()
            part = waiting.popleft()
            if _rows(part) > rows:
                part, rest = _split(part, rows)
                waiting.appendleft(rest)
            parts.append(part)
            rows -= _rows(part)
        return _joined(parts)

    def _receive(self) -> None:
        """Take in the rows of the next block. Raises StopIteration if the chunks end before it."""
        block = next(self._blocks)
        missing = block.rows
        while missing:
            chunk = next(self._chunks, None)
            if chunk is None:
                if missing == block.rows:
                    raise StopIteration
                raise ended_early(block, missing)
            if chunk.error:
                raise DataError(chunk.error)
            for fault in chunk.faults:
                self._log.add(fault)
            self._waiting[block.stream, block.pool].append(chunk.columns)
            missing -= chunk.rows
        assert missing == 0, "a chunk holds rows of one block"


def ended_early(block: Block, missing: int) -> DataError:
    """The error for a read task that delivers fewer rows than a block has."""
    return DataError(
        f"reading ended early: {missing:,} of the {block.rows:,} rows of {block.named} are missing; look for "
        "a read task that failed in Ray's logs, then resume the run"
    )


def _rows(columns: Columns) -> int:
    return len(columns["image"])


def _split(columns: Columns, at: int) -> tuple[Columns, Columns]:
    head = {name: column[:at] for name, column in columns.items()}
    return head, {name: column[at:] for name, column in columns.items()}


def _joined(parts: Sequence[Columns]) -> Columns:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _gathered(shares: Mapping[int, Columns], cut: Sequence[Piece]) -> Columns:
    """The rows of the pieces, in their order."""
    parts = []
    for piece in cut:
        end = piece.first + piece.rows
        parts.append({name: column[piece.first : end] for name, column in shares[piece.stream].items()})
    return _joined(parts)

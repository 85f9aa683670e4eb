"""From rows in order to global batches: what a rank's readers deliver becomes its micro-batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sfumato.core.batch import Batch, MicroBatch, Piece
from sfumato.data.blocks import Columns, decode_fault
from sfumato.data.config import DataSettings
from sfumato.data.faults import Fault, FaultLog
from sfumato.data.order import Block
from sfumato.data.plan import plan, problems, rank_streams
from sfumato.errors import DataError

if TYPE_CHECKING:
    import torch

__all__ = ["MicroBatches", "plan", "problems", "rank_streams", "to_batch"]


def to_batch(columns: Mapping[str, NDArray[Any]]) -> dict[str, torch.Tensor]:
    """`image` uint8 [n,H,W,C] to float32 [n,C,H,W] in [-1, 1] (x / 127.5 - 1), `label` to int64 [n]."""
    import torch  # here, since read tasks load this module and are started sooner without it

    image_BCHW = torch.from_numpy(np.ascontiguousarray(columns["image"].transpose(0, 3, 1, 2)))
    batch = {"image": image_BCHW.float().div_(127.5).sub_(1.0)}
    if "label" in columns:
        batch["label"] = torch.from_numpy(np.ascontiguousarray(columns["label"], np.int64))
    return batch


class MicroBatches(Iterator[list[MicroBatch]]):
    """One list of micro-batches a global batch, from the rows of the rank's blocks.

    `blocks` says which rows `chunks` brings: the chunks' rows, laid end to end, are those of the blocks in
    order, however they are cut (Ray splits and joins them). Faults are judged as rows arrive. Ends where
    the chunks end; call `close` when done earlier.
    """

    def __init__(
        self,
        chunks: Iterable[Columns],
        blocks: Iterable[Block],
        *,
        settings: DataSettings,
        cuts: Sequence[tuple[Piece, ...]],
        rows_per_stream: int,
    ) -> None:
        self._chunks = iter(chunks)
        self._blocks = iter(blocks)
        self._cuts = cuts
        self._rows_per_stream = rows_per_stream
        self._log = FaultLog(settings.on_error, settings.max_errors)
        self._rest: Columns | None = None
        self._waiting: dict[int, deque[Columns]] = {piece.stream: deque() for cut in cuts for piece in cut}

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The distinct samples that this rank skipped so far."""
        return self._log.faults

    def __next__(self) -> list[MicroBatch]:
        shares = {stream: self._take(stream) for stream in self._waiting}
        return [MicroBatch(_gathered(shares, cut), cut) for cut in self._cuts]

    def close(self) -> None:
        """Stop the readers behind it."""
        with suppress(AttributeError):  # an iterator that is no generator holds nothing
            self._chunks.close()  # type: ignore[attr-defined]

    def _take(self, stream: int) -> Columns:
        """The next rows of a stream that belong to one global batch."""
        parts: list[Columns] = []
        missing = self._rows_per_stream
        while missing:
            while not self._waiting[stream]:
                self._receive()
            part = self._waiting[stream].popleft()
            if _rows(part) > missing:
                part, rest = _split(part, missing)
                self._waiting[stream].appendleft(rest)
            parts.append(part)
            missing -= _rows(part)
        return _joined(parts)

    def _receive(self) -> None:
        """Take in the rows of the next block. Raises StopIteration where the chunks end."""
        block = next(self._blocks)
        missing = block.rows
        while missing:
            part = self._rest if self._rest is not None else self._arrival()
            self._rest = None
            if _rows(part) > missing:
                part, self._rest = _split(part, missing)
            self._waiting[block.stream].append(part)
            missing -= _rows(part)

    def _arrival(self) -> Columns:
        chunk = dict(next(self._chunks))
        fault = chunk.pop("fault")
        for row in np.flatnonzero(fault != ""):
            told = decode_fault(str(fault[row]))
            if not told.key:  # the whole block could not be read
                raise DataError(told.reason)
            self._log.add(told)
        return chunk


def _rows(columns: Columns) -> int:
    return len(columns["image"])


def _split(columns: Columns, at: int) -> tuple[Columns, Columns]:
    head = {name: column[:at] for name, column in columns.items()}
    return head, {name: column[at:] for name, column in columns.items()}


def _joined(parts: Sequence[Columns]) -> Columns:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _gathered(shares: Mapping[int, Columns], cut: Sequence[Piece]) -> Batch:
    """The rows of the pieces, in their order."""
    parts = []
    for piece in cut:
        end = piece.first + piece.rows
        parts.append({name: column[piece.first : end] for name, column in shares[piece.stream].items()})
    return to_batch(_joined(parts))

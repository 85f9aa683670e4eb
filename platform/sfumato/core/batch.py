"""Batches of images, how a global batch is cut, and the description of the data they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

Batch: TypeAlias = "Mapping[str, Tensor]"
"""`image` [B, C, H, W] float32 in [-1, 1]; `label` [B] int64 where the data has classes; `text`, `Texts` of
length B, where the recipe asks for captions (typed as if it were a tensor, which all other columns are)."""


class Texts(list[str]):
    """Captions of a batch. They go wherever a batch is sent, and stay on the host."""

    def to(self, *_: object, **__: object) -> Texts:
        """As `Tensor.to`."""
        return self


@dataclass(frozen=True, slots=True)
class DataSpec:
    """What a family has to know of the data before it can build its networks."""

    channels: int
    height: int
    width: int
    classes: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return (self.channels, self.height, self.width)


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive rows `first .. first + rows - 1` that a stream contributes to one global batch."""

    stream: int
    first: int
    rows: int


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The rows of one global batch that one forward and backward pass of one rank sees.

    The rows of `batch` are those of `pieces`, in their order.
    """

    batch: Batch
    pieces: tuple[Piece, ...]

    @property
    def rows(self) -> int:
        return sum(piece.rows for piece in self.pieces)

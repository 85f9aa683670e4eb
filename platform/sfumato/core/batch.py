"""Batches of images, the pieces of a global batch, and the description of the data they come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from sfumato.core.columns import Column, check_name

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Batch: TypeAlias = "Mapping[str, Tensor]"
"""On the device: `image` [B, C, H, W] float32 in [-1, 1]; `label` [B] int64 if the data has classes;
`text`, `Texts` of length B, if the recipe asks for captions; further columns by name, as `core.columns`
describes. (`Texts` and `Tags` are typed as if they were tensors; all other columns are tensors.)"""


class Texts(list[str]):
    """The captions of a batch. They travel with the batch but stay on the host."""

    def to(self, *_: object, **__: object) -> Self:
        """As `Tensor.to`."""
        return self


class Tags(list[list[str]]):
    """A list of words for each row of a batch. Like `Texts`, it stays on the host."""

    def to(self, *_: object, **__: object) -> Self:
        """As `Tensor.to`."""
        return self


class HostBatch(dict[str, "Tensor"]):
    """A batch as readers deliver it: the columns named in `images` are still uint8. See `to_device`."""

    def __init__(self, columns: Mapping[str, Tensor], images: Iterable[str] = ("image",)) -> None:
        super().__init__(columns)
        self.images = frozenset(images)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device, its images float32 in [-1, 1] (x / 127.5 - 1).

    Images travel as uint8 and are converted on the device, which moves a quarter of the bytes and takes none
    of the training thread's time. Copies to a GPU are asynchronous, from pinned memory. A plain mapping's
    columns are moved unchanged.
    """
    images = batch.images if isinstance(batch, HostBatch) else frozenset[str]()
    return {
        name: _pixels(_moved(column, device)) if name in images else _moved(column, device)
        for name, column in batch.items()
    }


def _moved(column: Tensor, device: torch.device) -> Tensor:
    if device.type != "cuda" or not hasattr(column, "pin_memory"):
        return column.to(device)
    return column.pin_memory().to(device, non_blocking=True)


def _pixels(image_BCHW: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1], with the same bits on every device.

    The divisor is a tensor on the device: with a Python number, CUDA multiplies by the reciprocal, which
    rounds differently from a division.
    """
    value = image_BCHW.float()
    return value.div_(value.new_full((), 127.5)).sub_(1.0)


@dataclass(frozen=True, slots=True)
class DataSpec:
    """What a family needs to know about the data to build its networks."""

    channels: int
    height: int
    width: int
    classes: tuple[str, ...] = ()
    extra: Mapping[str, Column] = field(default_factory=dict, hash=False)
    """Further columns of every sample, by name, including `text` if there are captions."""

    def __post_init__(self) -> None:
        for name in self.extra:
            check_name(name)

    @property
    def columns(self) -> Mapping[str, Column]:
        """All columns: `image`, `label` if there are classes, and the further ones."""
        columns = {"image": Column("image", "uint8", self.shape)}
        if self.classes:
            columns["label"] = Column("label", "int64", (), self.classes)
        return {**columns, **self.extra}

    def as_card(self) -> dict[str, Any]:
        """Plain data for a model's card; it has a field for further columns only if there are any."""
        card = asdict(self)
        return card if self.extra else {name: value for name, value in card.items() if name != "extra"}

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> DataSpec:
        """The inverse of `as_card`. Raises TypeError, KeyError or ValueError for any other input."""
        extra = {
            name: Column(**{**column, "shape": tuple(column["shape"]), "classes": tuple(column["classes"])})
            for name, column in dict(card.get("extra", {})).items()
        }
        return cls(**{**card, "classes": tuple(card["classes"]), "extra": extra})

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
    """The rows of one global batch that one rank processes in one forward and backward pass.

    The rows of `batch` are those of `pieces`, in the same order.
    """

    batch: Batch
    pieces: tuple[Piece, ...]

    @property
    def rows(self) -> int:
        return sum(piece.rows for piece in self.pieces)

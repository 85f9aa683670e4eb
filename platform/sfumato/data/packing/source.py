"""The interface of a source of images to pack, and the options that all sources share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, model_validator

from sfumato.core.components import Component
from sfumato.data.format.column_sources import ColumnsOption, Value
from sfumato.data.format.faults import Fault
from sfumato.data.packing.folder_names import FolderNames
from sfumato.data.packing.resizing import Crop, Encoded, Format, Look, Resample
from sfumato.data.packing.tasks import OnProgress, Runner
from sfumato.provenance.filters import FILTERS, FilterConfig

MAX_CLASSES = 100_000
NO_LABEL = -1
I64 = NDArray[np.int64]


def _parted(value: Any) -> Any:
    """`a,b,c` from a command line."""
    return (
        tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
    )


def _number(value: Any) -> Any:
    """`3` from a command line."""
    return int(value) if isinstance(value, str) and value.isdigit() else value


ChannelsOption = Annotated[Literal["auto", 1, 3], BeforeValidator(_number)]
Words = Annotated[tuple[str, ...], BeforeValidator(_parted)]


Further = Encoded | Value


def as_image(value: Further) -> Encoded:
    """A further column's value that is an image."""
    assert isinstance(value, Path | bytes | np.ndarray), "an image"
    return value


@dataclass(frozen=True, slots=True)
class Record:
    """One sample: an image as a file, its bytes or uint8 pixels [H, W, C], and its texts."""

    image: Encoded
    caption: str | None = None
    meta: Mapping[str, Any] | None = None
    extra: Mapping[str, Further] = field(default_factory=dict)
    """Its further columns: for images, files, bytes or pixels; for others, values."""


class Source(Protocol):
    """Images that were listed but not yet looked at. Passed to workers by value: see `only`."""

    @property
    def keys(self) -> Sequence[str]:
        """One unique key per sample, without dots; it names the sample's members in a shard."""
        ...

    @property
    def labels(self) -> I64 | None:
        """Class of each sample, -1 if it has none; None if the source has no classes."""
        ...

    @property
    def classes(self) -> Sequence[str]: ...

    @property
    def faults(self) -> Sequence[Fault]:
        """Samples that listing found unusable; they have no key in `keys`."""
        ...

    @property
    def description(self) -> str: ...

    @property
    def uniform(self) -> Look | None:
        """The look of every image, if listing can determine it."""
        ...

    def only(self, rows: Sequence[int]) -> Source:
        """A source of these samples, in this order; `faults` and `uniform` do not matter there."""
        ...

    def name(self, row: int) -> str:
        """The name by which the user knows the sample, for messages."""
        ...

    def mark(self, row: int) -> str:
        """Changes when the result of `read` for the row may have changed."""
        ...

    def read(self, row: int) -> Record:
        """Sample `row` of `keys`. Raises ImageFault."""
        ...


@dataclass(frozen=True, slots=True)
class Opening:
    """The means for listing a source: limits, a folder for intermediate files, and workers."""

    max_pixels: int
    scratch: Path
    run: Runner
    progress: OnProgress
    note: Callable[[str], None] = lambda text: None
    """Called with what the user should know, a line each."""


class SourceConfig(Component, ABC):
    """Where images come from and how they are stored. A subclass adds its own fields.

    What it reads is in its field `path`, a local path or a URI, if it reads files at all.
    """

    WORDS: ClassVar[tuple[str, ...]] = ()
    """Words of the command line that mean this source instead of a path."""
    FILES: ClassVar[tuple[str, ...]] = ()
    """Endings of the names of files that it reads, in lower case, without `.gz`."""
    PRECEDENCE: ClassVar[int] = 10
    """If several kinds recognise a file or folder, the one with the highest number is chosen."""
    NEIGHBOURS: ClassVar[bool] = False
    """Whether a single file refers to others next to it."""
    TAKES_COLUMNS: ClassVar[bool] = False
    """Whether samples of this kind of source can have further columns."""

    licence: str = Field("", description="Terms of use of the images, kept in the manifest.")
    size: int | None = Field(
        None,
        ge=1,
        description="Scale and crop to a square of this size; null keeps every pixel. With buckets=auto the "
        "side of a square of as many pixels as the largest bucket.",
    )
    channels: ChannelsOption = Field(
        "auto", description="1 grey, 3 RGB; auto takes the images' own, and RGB for a mixture."
    )
    resample: Resample = Field("lanczos", description="Filter of the (antialiased) resizing.")
    crop: Crop = Field(
        "center", description="Which part to keep: the middle, or one drawn from a hash of the sample's key."
    )
    upscale: bool = Field(False, description="Enlarge images that are too small, instead of refusing them.")
    buckets: Words = Field(
        (),
        description="Sizes WIDTHxHEIGHT, or auto: every image goes to the one nearest to its aspect ratio.",
    )
    bucket_step: int | None = Field(
        None, ge=1, description="With buckets=auto: sides are multiples of this; null is an eighth of size."
    )
    format: Format = Field(
        "png",
        description="How images are stored; keep keeps the bytes of those that need no change and stores "
        "the others as png.",
    )
    quality: int = Field(95, ge=1, le=100, description="Of jpeg and webp; webp at 100 is lossless.")
    val: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="Share of the samples, chosen by a hash of their keys, that goes into a separate "
        "data set: DEST/train and DEST/val.",
    )
    opt_out: Words = Field(
        (),
        exclude_if=lambda value: not value,
        description="Lists of samples that must not be trained on, by key, checksum, perceptual hash or "
        "address: files, local or URIs. The manifest records them.",
    )
    dedupe: int | None = Field(
        None,
        ge=0,
        le=16,
        description="Leave out near duplicates: images whose 64-bit perceptual hashes differ in at most "
        "this many bits (4 is a good start). null keeps all.",
    )
    filter: Annotated[FilterConfig, FILTERS] | None = Field(
        None,
        description="Leave out images that this classifier finds, such as {kind: open_nsfw, threshold: 0.8}. "
        "null keeps all.",
    )

    columns: ColumnsOption = Field(
        default_factory=dict,
        description="Further columns by name, each with its kind and where it comes from: {control: {kind: "
        "image, member: line.png}, words: {kind: tags, field: keywords}}. Further images get the geometry "
        "of the image.",
    )

    @model_validator(mode="after")
    def _columns_possible(self) -> Self:
        if self.columns and not self.TAKES_COLUMNS:
            raise ValueError(f"columns: samples of kind {self.kind} have only image, label and caption")
        return self

    @classmethod
    def recognises(cls, folder: FolderNames) -> bool:
        """Whether a folder with these names is one that it reads."""
        return False

    @property
    @abstractmethod
    def name(self) -> str:
        """The name of the data set and its shards."""

    @abstractmethod
    def open(self, opening: Opening) -> Source:
        """List everything without decoding an image. Raises DataError in one line."""

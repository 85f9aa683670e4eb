"""What can be packed: the interface of a source of images, and the rules that all sources share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pydantic import Field

from sfumato.core.config import Config
from sfumato.data.faults import Fault
from sfumato.data.images import U8
from sfumato.data.manifest import ImageInfo

MAX_CLASSES = 100_000


@dataclass(frozen=True, slots=True)
class Record:
    """One sample: uint8 [H, W, C], and a label where the source has classes."""

    pixels_HWC: U8
    label: int | None
    caption: str | None


class Source(Protocol):
    """Images that were looked at but not yet decoded."""

    @property
    def image(self) -> ImageInfo: ...
    @property
    def classes(self) -> Sequence[str]: ...
    @property
    def keys(self) -> Sequence[str]:
        """One unique key a sample, without dots: what names its members in a shard."""
        ...

    @property
    def faults(self) -> Sequence[Fault]:
        """What looking found unusable; these have no key in `keys`."""
        ...

    @property
    def description(self) -> str: ...

    def read(self, index: int) -> Record:
        """Sample `index` of `keys`. Raises ImageFault."""
        ...


class SourceConfig(Config, ABC):
    """Where images come from. A subclass sets `kind: Literal["its_name"]` and its own fields."""

    kind: str
    licence: str = Field("", description="Terms of use of the images, kept in the manifest.")

    @property
    @abstractmethod
    def name(self) -> str:
        """What the data set and its shards are called unless the user says otherwise."""

    @abstractmethod
    def open(self, max_pixels: int) -> Source:
        """Look at everything that can be seen without decoding. Raises DataError in one line."""

"""What sources of drawn pictures of shapes share: their options, and how they draw some hundreds at once."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Generic, Self, TypeVar

import numpy as np
from pydantic import Field, field_validator

from sfumato.data.format.column_sources import ColumnsOption, ColumnSource, check_sources
from sfumato.data.format.faults import Fault
from sfumato.data.packing.resizing import Look
from sfumato.data.packing.source import I64, Record, SourceConfig
from sfumato.data.shapes.vocabulary import LARGEST_SIDE, SMALLEST_SIDE

_AT_ONCE = 512


class DrawnShapesConfig(SourceConfig, ABC):
    """Options of a source whose samples are drawn, each from the seed and its number alone."""

    TAKES_COLUMNS: ClassVar[bool] = True
    SAMPLES: ClassVar[str] = ""
    """What messages call its samples."""
    COLUMNS: ClassVar[Mapping[str, ColumnSource]] = {}
    """Those that samples have; a recipe may leave some out."""

    licence: str = Field("CC0 1.0", description="Terms of use of the images, kept in the manifest.")
    images: int = Field(20_000, ge=1, le=10_000_000, description="How many.")
    size: int | None = Field(
        32,
        ge=SMALLEST_SIDE,
        le=LARGEST_SIDE,
        description="Side of the pictures; they are drawn at this size.",
    )
    columns: ColumnsOption = Field(default_factory=dict, description="Which columns to pack.")

    @field_validator("columns")
    @classmethod
    def _known(cls, columns: Mapping[str, ColumnSource]) -> Mapping[str, ColumnSource]:
        for name, source in check_sources(columns).items():
            if cls.COLUMNS.get(name) != source:
                has = ", ".join(cls.COLUMNS)
                raise ValueError(f"{cls.SAMPLES} have the columns {has} as they are, not {name}={source}")
        return columns


C = TypeVar("C", bound=DrawnShapesConfig)


class DrawnShapes(ABC, Generic[C]):
    """Draws samples as they are read, some hundreds at once; implements `source.Source`."""

    labels: I64 | None = None
    classes: Sequence[str] = ()
    faults: Sequence[Fault] = ()

    def __init__(self, config: C, description: str) -> None:
        assert config.size is not None
        self._config = config
        self._row_N = np.arange(config.images)
        self.keys = [f"{row:08d}" for row in range(config.images)]
        self.description = description
        self.uniform: Look | None = Look(config.size, config.size, grey=False)
        self._drawn: tuple[int, Sequence[Record]] | None = None

    @abstractmethod
    def draw(self, row_N: I64) -> Sequence[Record]:
        """The samples of these numbers."""

    def only(self, rows: Sequence[int]) -> Self:
        part = copy.copy(self)
        part._row_N, part._drawn = self._row_N[np.asarray(rows, np.int64)], None
        part.keys = [self.keys[row] for row in rows]
        return part

    def read(self, row: int) -> Record:
        first = row - row % _AT_ONCE
        if self._drawn is None or self._drawn[0] != first:
            self._drawn = first, self.draw(self._row_N[first : first + _AT_ONCE])
        return self._drawn[1][row - first]

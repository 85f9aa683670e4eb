"""Parts of a model that are learnt from the whole data set once, before training, such as a tokenizer.

They are fields of the family's configuration. When a run starts, each is replaced by what it has learnt: the
run's recipe and the model's card hold it, and it counts for the run's identity.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Protocol, Self

from sfumato.core.config import Config


class DataSet(Protocol):
    """The data that a run is about to train on."""

    def values(self, column: str) -> Iterator[Any]:
        """All values of a column, in the data set's order. Raises ConfigError for an unknown column."""
        ...

    def encoder(self, column: str) -> str | None:
        """The digest of the encoder that computed a column of the batches; None if none did, or there is
        none.
        """
        ...


class FromData(Config, ABC):
    """A part of a recipe that learns from the data. It is found, wherever it is, by its type."""

    @abstractmethod
    def learnt(self, data: DataSet, note: Callable[[str], None]) -> Self:
        """The part with all that it learns from the data set: the same for the same content.

        `note` shows a line to the user. Raises ConfigError, in one line, for data that cannot serve.
        """

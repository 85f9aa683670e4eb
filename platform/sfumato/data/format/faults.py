"""Samples that cannot be used, as values: found where they are read, judged where they are consumed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sfumato.errors import DataError

OnError = Literal["fail", "skip"]


class ImageFault(Exception):
    """One image cannot be used; the text is the reason. It never leaves the data package."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A sample that cannot be used: the shard or folder that holds it, its key, and why."""

    where: str
    key: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.key}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Wording:
    """What a message calls the settings that it advises, where its reader can set them."""

    skip: str = "on_error='skip'"
    limit: str = "max_errors"
    overwrite: str = "overwrite=True"


IN_PYTHON = Wording()
IN_RECIPES = Wording(skip="data.on_error=skip", limit="data.max_errors")
IN_PYTHON_OR_RECIPES = Wording(skip=f"{IN_PYTHON.skip}, in a recipe {IN_RECIPES.skip}")
ON_COMMAND_LINE = Wording(skip="--on-error skip", limit="--max-errors", overwrite="--overwrite")


@dataclass
class FaultLog:
    """Applies `on_error`: stops at the first fault, or lists distinct faults up to a limit."""

    on_error: OnError
    max_errors: int
    wording: Wording = IN_PYTHON
    _seen: dict[tuple[str, str], Fault] = field(default_factory=dict)

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The distinct samples skipped so far, in the order in which they were met."""
        return tuple(self._seen.values())

    def add(self, fault: Fault) -> None:
        """Record a fault. Raises DataError if the settings require it."""
        if self.on_error == "fail":
            raise DataError(f"{fault} (repair or remove it, or leave it out with {self.wording.skip})")
        self._seen.setdefault((fault.where, fault.key), fault)
        if len(self._seen) > self.max_errors:
            raise DataError(
                f"{len(self._seen)} samples cannot be used, more than "
                f"{self.wording.limit}={self.max_errors}; the last one: {fault}"
            )

"""What an evaluation says about how far it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol


class ProgressCallback(Protocol):
    """Called with (done, in all) and perhaps figures to show, by name. In all: None while that is open."""

    def __call__(
        self, done: int, total: int | None, figures: Mapping[str, float] | None = None, /
    ) -> None: ...


Begin = Callable[[str], ProgressCallback]
"""Called with the name of a part of the work that begins; what it returns is told the part's progress."""

SAMPLES = "samples"
"""The part that generates."""


def untold(done: int, total: int | None, figures: Mapping[str, float] | None = None, /) -> None:
    """For parts of which nobody wants to hear."""


def silent(name: str) -> ProgressCallback:
    """Nobody listens."""
    return untold


def once_told(begin: Begin, part: str) -> ProgressCallback:
    """A part that begins with its first progress: of what is found finished, nothing is said."""
    told: list[ProgressCallback] = []

    def tell(done: int, total: int | None, figures: Mapping[str, float] | None = None, /) -> None:
        if not told:
            told.append(begin(part))
        if figures is None:
            told[0](done, total)
        else:
            told[0](done, total, figures)

    return tell

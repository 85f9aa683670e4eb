"""What an evaluation says about how far it is."""

from __future__ import annotations

from collections.abc import Callable

ProgressCallback = Callable[[int, int], None]
"""Called with (done, in all)."""

Begin = Callable[[str], ProgressCallback]
"""Called with the name of a part of the work that begins; what it returns is told the part's progress."""

SAMPLES = "samples"
"""The part that generates."""


def untold(done: int, total: int) -> None:
    """For parts of which nobody wants to hear."""


def silent(name: str) -> ProgressCallback:
    """Nobody listens."""
    return untold


def once_told(begin: Begin, part: str) -> ProgressCallback:
    """A part that begins with its first progress: of what is found finished, nothing is said."""
    told: list[ProgressCallback] = []

    def tell(done: int, total: int) -> None:
        if not told:
            told.append(begin(part))
        told[0](done, total)

    return tell

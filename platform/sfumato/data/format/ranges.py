"""Byte ranges of one file, in as few reads as the gaps between them allow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sfumato.data.storage.read import open_file

_MAX_GAP = 1 << 16
_MAX_READ = 64 << 20

Range = tuple[int, int]
"""Offset and size."""


def read_ranges(folder: str, name: str, ranges: Sequence[Range]) -> list[bytes]:
    """The content of each range, in their order; shorter if the file ends early.

    Raises DataError if the file cannot be read.
    """
    found = [b""] * len(ranges)
    order = sorted(range(len(ranges)), key=ranges.__getitem__)
    with open_file(folder, name) as file:
        for run in _runs(ranges, order):
            start = ranges[run[0]][0]
            file.seek(start)
            buffer = file.read(max(ranges[at][0] + ranges[at][1] for at in run) - start)
            for at in run:
                offset, size = ranges[at]
                found[at] = bytes(buffer[offset - start : offset - start + size])
    return found


def _runs(ranges: Sequence[Range], order: Sequence[int]) -> Iterator[list[int]]:
    """Runs of ranges, split at gaps too large to be worth reading."""
    run: list[int] = []
    for at in order:
        offset, size = ranges[at]
        if run:
            before = ranges[run[-1]]
            gap = offset - before[0] - before[1]
            if gap > _MAX_GAP or offset + size - ranges[run[0]][0] > _MAX_READ:
                yield run
                run = []
        run.append(at)
    if run:
        yield run

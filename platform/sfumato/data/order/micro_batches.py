"""How a global batch is cut: which rows of which streams one rank sees, and in which micro-batches.

A global batch of B rows takes b = B / P consecutive rows of each of P streams. Rank r of W serves the
streams p with p mod W == r. With a micro-batch of m rows, the batch is cut into B / m parts that do not
depend on W wherever possible, so that one worker with two parts adds up the same gradients as two
workers with one part each.
"""

from __future__ import annotations

from collections.abc import Iterable

from sfumato.core.batch import Piece
from sfumato.errors import ConfigError

Cut = tuple[Piece, ...]


def rank_streams(streams: int, world_size: int, rank: int) -> range:
    """The streams that a rank serves."""
    return range(rank, streams, world_size)


def plan(batch: int, streams: int, world_size: int, rank: int, micro_batch: int | None = None) -> list[Cut]:
    """The rank's micro-batches, each a tuple of pieces of the global batch.

    - `micro_batch` None: all rows of the rank at once.
    - m <= b: runs of m rows of one stream.
    - m > b: group g has the streams g, g + G, g + 2G, ... with G = B / m; where W divides G, rank r takes
      the groups g with g mod W == r. If it does not (an elastic run on an odd number of workers), the
      rank cuts its own streams into runs of m / b.

    Raises ConfigError naming the field and the nearest legal value.
    """
    if found := problems(batch, streams, world_size, micro_batch):
        raise ConfigError(*found)
    own = list(rank_streams(streams, world_size, rank))
    share = batch // streams
    if micro_batch is None:
        return [_whole(own, share)]
    if micro_batch <= share:
        starts = range(0, share, micro_batch)
        return [(Piece(stream, first, micro_batch),) for stream in own for first in starts]
    groups = batch // micro_batch
    if groups % world_size == 0:
        mine = range(rank, groups, world_size)
        return [_whole(range(group, streams, groups), share) for group in mine]
    together = micro_batch // share
    return [_whole(own[at : at + together], share) for at in range(0, len(own), together)]


def _whole(streams: Iterable[int], share: int) -> Cut:
    return tuple(Piece(stream, 0, share) for stream in streams)


def problems(
    batch: int,
    streams: int,
    workers: int,
    micro_batch: int | None = None,
    samples: int | None = None,
) -> list[str]:
    """The reasons why this combination is impossible, one line each with the nearest legal value."""
    found = []
    if workers > streams:
        found.append(
            f"parallel.workers={workers} is more than data.streams={streams}, and each worker serves at "
            f"least one stream: use at most {streams} workers, or {workers} streams"
        )
    if samples is not None and streams > samples:
        found.append(
            f"data.streams={streams} is more than the data set's {samples:,} samples: use at most {samples:,}"
        )
    if batch % streams:
        legal = _nearest_multiple(batch, streams)
        found.append(
            f"train.batch={batch} is not divisible by data.streams={streams}: the nearest is {legal}"
        )
    elif micro_batch is not None and micro_batch not in (legal_micro := _micro_batches(batch, streams)):
        nearest = min(legal_micro, key=lambda size: (abs(size - micro_batch), size))
        found.append(
            f"train.micro_batch={micro_batch} does not cut the {batch // streams} rows that each of "
            f"{streams} streams gives to train.batch={batch}, nor whole streams, evenly: "
            f"the nearest is {nearest}"
        )
    return found


def coupling_problems(
    batch: int, streams: int, workers: int, micro_batch: int | None, *, least: int | None = None
) -> list[str]:
    """Why the rows of a micro-batch would depend on the number of workers, in one line.

    A model whose rows influence one another (batch normalisation, dropout) computes the same on any number of
    workers only if the cut is the same. An elastic run may meet every number from `least` to `workers`.
    """
    counts = [count for count in range(least or workers, workers + 1) if count > 1]

    def unlike(size: int | None) -> list[int]:
        return [n for n in counts if size is None or not _cut_alike(batch, streams, n, size)]

    if not (found := unlike(micro_batch)):
        return []
    legal = [s for s in _micro_batches(batch, streams) if s <= batch // workers and not unlike(s)]
    return [
        f"train.micro_batch={'null' if micro_batch is None else micro_batch} gives {found[0]} workers other "
        "micro-batches than one, and this model normalises (or draws dropout) over a micro-batch: use "
        + (f"train.micro_batch={legal[-1]}, or " if legal else "")
        + "parallel.workers=1"
    ]


def _cut_alike(batch: int, streams: int, workers: int, micro_batch: int) -> bool:
    """Whether that many workers cut a global batch as one worker does: see `plan`."""
    return micro_batch <= batch // streams or batch // micro_batch % workers == 0


def _nearest_multiple(value: int, factor: int) -> int:
    return max(factor, (value + factor // 2) // factor * factor)


def _micro_batches(batch: int, streams: int) -> list[int]:
    """All legal sizes: divisors of a stream's share, and the share times a divisor of the streams."""
    share = batch // streams
    return _divisors(share) + [share * count for count in _divisors(streams) if count > 1]


def _divisors(number: int) -> list[int]:
    low = [size for size in range(1, int(number**0.5) + 1) if number % size == 0]
    return sorted({*low, *(number // size for size in low)})

"""Runs the parts of a large computation in this process or on Ray, with the same result.

A part is a pure function of arrays that all parts share and of its own item. Results come back in the
order of the items, so the outcome depends neither on how many workers there were nor on which was
first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from sfumato.core.allocator import keep_freed_memory
from sfumato.evaluation.progress import ProgressCallback

S = TypeVar("S")
I = TypeVar("I")  # noqa: E741  # an item
R = TypeVar("R")


class Spread(Protocol):
    """Maps `part(shared, item)` over `items`. `part` must be importable by name: workers fetch it."""

    def __call__(self, part: Callable[[S, I], R], shared: S, items: Sequence[I]) -> Iterator[R]:
        """The results, in the order of the items."""
        ...


def in_process(part: Callable[[S, I], R], shared: S, items: Sequence[I]) -> Iterator[R]:
    """One after another, in this process."""
    for item in items:
        yield part(shared, item)


@dataclass(frozen=True, slots=True)
class Told:
    """Another mapping that says how many of the items are done."""

    spread: Spread
    progress: ProgressCallback

    def __call__(self, part: Callable[[S, I], R], shared: S, items: Sequence[I]) -> Iterator[R]:
        """The results, in the order of the items."""
        for done, result in enumerate(self.spread(part, shared, items), start=1):
            self.progress(done, len(items))
            yield result


@dataclass(frozen=True, slots=True)
class OnRay:
    """Ray tasks; the caller has started Ray. Arrays in `shared` are stored once and read in place.

    `workers` tasks run at a time, `cpus` each, with as many threads.
    """

    workers: int
    cpus: float = 1.0

    def __call__(self, part: Callable[[S, I], R], shared: S, items: Sequence[I]) -> Iterator[R]:
        """The results, in the order of the items; at most two tasks per worker run or wait."""
        import ray

        remote: Any = ray.remote(_run).options(num_cpus=self.cpus)
        stored = ray.put(shared)
        threads = max(1, int(self.cpus))
        waiting: deque[Any] = deque()
        for item in items:
            if len(waiting) >= 2 * self.workers:
                yield ray.get(waiting.popleft())
            waiting.append(remote.remote(part, stored, item, threads))
        while waiting:
            yield ray.get(waiting.popleft())


def _run(part: Callable[[S, I], R], shared: S, item: I, threads: int) -> R:
    import torch

    keep_freed_memory()
    torch.set_num_threads(threads)
    return part(shared, item)

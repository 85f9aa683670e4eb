"""Work that may run in this process or on a cluster: tasks that report their progress.

A task is a picklable callable that yields integers (how many images are done) and, last, its result. A
runner takes tasks and returns their results in the order of the tasks, so that the outcome does not
depend on where they ran or how many at once. `ray_tasks` has the runner for a cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")
Task = Callable[[], Iterator[int | T]]
OnProgress = Callable[[int, int | None], None]


class Runner(Protocol):
    """Runs tasks; `advance(count)` is called as they report progress."""

    def __call__(self, tasks: Sequence[Task[T]], advance: Callable[[int], None]) -> Iterator[T]: ...


def in_process(tasks: Sequence[Task[T]], advance: Callable[[int], None]) -> Iterator[T]:
    """Runs one task after another in this process."""
    for task in tasks:
        for item in task():
            if isinstance(item, int):
                advance(item)
            else:
                yield item


class Tally:
    """Adds up the progress of tasks and reports it as (done, total)."""

    def __init__(self, progress: OnProgress | None, total: int | None) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done if self._total is None else min(self._done, self._total), self._total)

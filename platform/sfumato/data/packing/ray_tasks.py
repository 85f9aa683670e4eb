"""Tasks on a Ray cluster, one CPU each. What they read and write must be on a disk that all nodes share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray

from sfumato.data.packing.tasks import T, Task
from sfumato.errors import DataError, SfumatoError


class RayRunner:
    """A `tasks.Runner` that keeps up to `workers` tasks running, anywhere in the connected cluster."""

    def __init__(self, workers: int) -> None:
        self._workers = workers

    def __call__(self, tasks: Sequence[Task[T]], advance: Callable[[int], None]) -> Iterator[T]:
        running: dict[Any, int] = {}
        results: dict[int, T] = {}
        started = given = 0
        try:
            while given < len(tasks):
                # Bounded, since results wait here for earlier ones.
                while started < len(tasks) and len(running) < self._workers and started < given + 64:
                    running[_run.remote(tasks[started])] = started
                    started += 1
                for stream in ray.wait(list(running), num_returns=1, timeout=1.0)[0]:
                    self._take(stream, running, results, advance)
                while given in results:
                    yield results.pop(given)
                    given += 1
        finally:
            for stream in running:
                ray.cancel(stream, force=True)

    def _take(
        self, stream: Any, running: dict[Any, int], results: dict[int, T], advance: Callable[[int], None]
    ) -> None:
        """The next item of a task: progress, its result, or an error, which is raised."""
        try:
            item = ray.get(next(stream))
        except StopIteration:
            del running[stream]
            return
        except ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise DataError(f"a worker process failed: {lines[-1]}") from error
        if isinstance(item, SfumatoError):
            raise item
        if isinstance(item, int):
            advance(item)
        else:
            results[running[stream]] = item


@ray.remote(num_cpus=1, max_retries=2)
def _run(task: Task[Any]) -> Iterator[Any]:
    """Errors for the user travel as values: Ray would bury them in its own text."""
    try:
        yield from task()
    except SfumatoError as error:
        yield error

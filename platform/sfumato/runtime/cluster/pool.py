"""Workers for tasks on data: this process for little, a Ray cluster for more."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from sfumato.data.packing.tasks import T, Task, in_process
from sfumato.runtime.cluster import ray_cluster

_FEW = 4
"""Fewer tasks than these finish before a private cluster would have started."""


class Pool:
    """A `tasks.Runner` that starts or joins a cluster when it first has enough to do.

    `workers` None takes every CPU of the cluster (RAY_ADDRESS, or one on this machine); 1 never leaves this
    process.
    """

    def __init__(self, workers: int | None = None) -> None:
        self._workers = workers
        self._stack = contextlib.ExitStack()
        self._joined = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def __call__(self, tasks: Sequence[Task[T]], advance: Callable[[int], None]) -> Iterator[T]:
        alone = not os.environ.get("RAY_ADDRESS") and ray_cluster.cores() == 1
        if self._workers == 1 or len(tasks) < 2 or (self._workers is None and (alone or len(tasks) < _FEW)):
            return in_process(tasks, advance)
        workers = self._join()
        from sfumato.data.packing.ray_tasks import RayRunner

        return RayRunner(workers)(tasks, advance)

    def _join(self) -> int:
        if not self._joined:
            logs = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="sfumato-logs-")))
            self._stack.enter_context(ray_cluster.cluster(self._workers or 1, logs))
            import ray

            cpus = int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
            self._joined = self._workers or max(1, cpus)
        return self._joined

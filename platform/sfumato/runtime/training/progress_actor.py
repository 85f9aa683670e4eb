"""Tells the driver how far the workers are: a small Ray actor that both can reach."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import ray

from sfumato.runtime.training.heartbeat import Beat, Pulses, Seen, Who
from sfumato.runtime.training.prometheus import Gauges


@dataclass
class Snapshot:
    """The driver's view. `failed` is an error for the user that no retry would cure."""

    images: int = 0
    total_images: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    failed: tuple[str, str] | None = None
    stopping: str | None = None
    """The reason to end training early, once it is requested."""
    controller: bytes | None = None
    """Pickled handle of Ray Train's controller, once it is registered (`runtime.training.introduce`)."""


class Board:
    """Holds the latest progress and all notes of a stage of `run`."""

    def __init__(self, run: str) -> None:
        self._snapshot = Snapshot()
        self._gauges = Gauges(run)
        self._evaluated = 0
        self._pulses = Pulses()
        self._asked = self._saved = 0

    def progress(self, images: int, total_images: int, metrics: dict[str, float]) -> None:
        self._snapshot.images = images
        self._snapshot.total_images = total_images
        self._snapshot.metrics = metrics
        self._gauges.set(images, total_images, metrics)

    def note(self, text: str) -> None:
        if text not in self._snapshot.notes:
            self._snapshot.notes.append(text)

    def fail(self, kind: str, message: str) -> None:
        if self._snapshot.failed is None:
            self._snapshot.failed = (kind, message)

    def failed(self) -> tuple[str, str] | None:
        return self._snapshot.failed

    def stop(self, reason: str) -> None:
        """Ask the training workers to end."""
        if self._snapshot.stopping is None:
            self._snapshot.stopping = reason

    def collapse(self, seen: bool) -> None:
        """Whether the last evaluation found a sign of mode collapse."""
        self._gauges.collapse(seen)

    def stopping(self) -> str | None:
        return self._snapshot.stopping

    def evaluated(self, images: int) -> None:
        """The evaluation of the snapshot at so many images has ended, whatever its outcome."""
        self._evaluated = max(self._evaluated, images)

    def evaluated_images(self) -> int:
        return self._evaluated

    def introduce(self, controller: bytes) -> None:
        self._snapshot.controller = controller

    def ask_save(self) -> int:
        """Request a checkpoint at the workers' next look; returns the number of the request."""
        self._asked += 1
        return self._asked

    def save_asked(self) -> int:
        """The number of the newest request that waits for its checkpoint, or 0."""
        return self._asked if self._asked > self._saved else 0

    def saved(self, request: int) -> None:
        self._saved = max(self._saved, request)

    def hello(self, attempt: str, rank: int, who: Who) -> None:
        self._pulses.hello(attempt, rank, who)

    def beat(self, attempt: str, rank: int, beat: Beat) -> None:
        self._pulses.beat(attempt, rank, beat)

    def goodbye(self, attempt: str, rank: int) -> None:
        self._pulses.goodbye(attempt, rank)

    def forget(self) -> None:
        """The ranks' pulses, until the next group of workers starts."""
        self._pulses.forget()

    def pulses(self) -> tuple[str, dict[int, Seen]]:
        return self._pulses.seen()

    def snapshot(self) -> Snapshot:
        return self._snapshot


def create(run: str) -> Any:
    """Handle of a new board of `run`, without a CPU. Any: Ray adds `.remote`.

    It lives on the driver's node: on a trainer's node, losing that node would end the run.
    """
    here = ray.get_runtime_context().get_node_id()
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=False)
    return ray.remote(Board).options(num_cpus=0, scheduling_strategy=strategy).remote(run)


class BoardHandler(logging.Handler):
    """Shows this package's warnings to the user; rank 0 has one."""

    def __init__(self, board: Any) -> None:
        super().__init__(logging.WARNING)
        self._board = board
        logging.getLogger("sfumato").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self._board.note.remote(record.getMessage())

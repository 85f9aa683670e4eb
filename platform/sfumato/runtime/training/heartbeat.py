"""The pulse of training workers: a thread in each tells the board where its rank is, until training ends.

A rank that is stuck in a step still has a pulse, which reports its current line. A rank whose process is
frozen has none. `runtime.training.watchdog` judges by that.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import ray

from sfumato.core.progress import Progress
from sfumato.runtime.training.controller_handle import packed

_MOST_S, _LEAST_S = 5.0, 0.2
_PACKAGE = "sfumato"
_ROOTS = re.compile(r"site-packages|platform|python3\.\d+")


def interval(timeout_s: float) -> float:
    """Seconds between two beats of a run that counts as stuck after `timeout_s`."""
    return max(_LEAST_S, min(timeout_s / 10, _MOST_S))


@dataclass(frozen=True, slots=True)
class CodePosition:
    """The position of a thread. `waits`: it is in a call that returns only when other ranks take part."""

    text: str
    waits: bool


@dataclass(frozen=True, slots=True)
class Beat:
    """A rank's report. `counts`: it is in a step, whose time is limited, not in a hook."""

    steps: int
    images: int
    counts: bool
    place: CodePosition


@dataclass(frozen=True)
class Who:
    """A rank's process, for messages, and its actor."""

    pid: int
    node: str
    actor: bytes
    """Its packed handle."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A rank as the board sees it: its last beat, seconds since then, seconds without progress in a step."""

    who: Who
    beat: Beat | None
    silent_s: float
    still_s: float


@dataclass
class _Rank:
    who: Who
    heard: float
    moved: float
    beat: Beat | None = None


@dataclass
class Pulses:
    """The last beats of the newest group of workers; held by the board. Times are those of its own clock."""

    clock: Callable[[], float] = time.monotonic
    attempt: str = ""
    _ranks: dict[int, _Rank] = field(default_factory=dict)

    def hello(self, attempt: str, rank: int, who: Who) -> None:
        """A rank of a group starts; the board forgets those of an earlier group."""
        if attempt != self.attempt:
            self.forget()
            self.attempt = attempt
        self._ranks[rank] = _Rank(who, self.clock(), self.clock())

    def beat(self, attempt: str, rank: int, beat: Beat) -> None:
        """Survivors of an earlier group are ignored."""
        if attempt != self.attempt or rank not in self._ranks:
            return
        known, now = self._ranks[rank], self.clock()
        if known.beat is None or not beat.counts or beat.steps != known.beat.steps:
            known.moved = now
        known.heard, known.beat = now, beat

    def goodbye(self, attempt: str, rank: int) -> None:
        """A rank has finished, or has failed in a way that others notice."""
        if attempt == self.attempt:
            self._ranks.pop(rank, None)

    def forget(self) -> None:
        self._ranks.clear()
        self.attempt = ""

    def seen(self) -> tuple[str, dict[int, Seen]]:
        """The group and its ranks."""
        now = self.clock()
        return self.attempt, {
            rank: Seen(known.who, known.beat, now - known.heard, now - known.moved)
            for rank, known in self._ranks.items()
        }


class Pulse:
    """Beats for the training thread, which creates it. `timeout_s` None: no pulse."""

    def __init__(self, board: Any, attempt: str, rank: int, timeout_s: float | None) -> None:
        self._board, self._attempt, self._rank = board, attempt, rank
        self._timeout_s = timeout_s
        self._trains = threading.get_ident()
        self._progress = Progress(0, 0, 0, 0)
        self._counts = False
        self._stop = threading.Event()

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Report this rank to the board while the block runs."""
        if self._timeout_s is None:
            yield
            return
        node = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        who = Who(os.getpid(), node, packed(ray.get_runtime_context().current_actor))
        ray.get(self._board.hello.remote(self._attempt, self._rank, who))
        threading.Thread(
            target=self._run, args=(interval(self._timeout_s),), name="pulse", daemon=True
        ).start()
        try:
            yield
        finally:
            self._stop.set()
            self._board.goodbye.remote(self._attempt, self._rank)

    def stepped(self, progress: Progress) -> None:
        """A step has ended; the time of the next one is limited, unless this was the last one."""
        self._progress, self._counts = progress, progress.images < progress.total_images

    def rest(self) -> None:
        """Do not limit the time until the next `stepped`: start-up, compilation, a checkpoint."""
        self._counts = False

    def aside(self, action: Callable[[Progress], None]) -> Callable[[Progress], None]:
        """The action of a hook, whose time is not limited."""

        def unlimited(progress: Progress) -> None:
            self.rest()
            action(progress)

        return unlimited

    def _run(self, every: float) -> None:
        while not self._stop.wait(every):
            frame = sys._current_frames().get(self._trains)
            progress = self._progress
            beat = Beat(progress.step, progress.images, self._counts, place_of(frame))
            try:
                self._board.beat.remote(self._attempt, self._rank, beat)
            except Exception:  # noqa: BLE001 - Ray is being taken down, and with it this process
                return


def place_of(frame: FrameType | None) -> CodePosition:
    """The innermost line that runs, and the line of this package that called it."""
    lines: list[tuple[str, str]] = []
    waits = False
    while frame is not None:
        path, function = _short(frame.f_code.co_filename), frame.f_code.co_name
        lines.append((path, f"{path}:{frame.f_lineno} {function}"))
        # DistributedDataParallel averages gradients in the backward pass.
        waits = waits or path.startswith("torch/distributed/") or function == "_engine_run_backward"
        frame = frame.f_back
    if not lines:
        return CodePosition("no thread", waits=False)
    inner = lines[0][1]
    ours = next((text for path, text in lines if path.startswith(f"{_PACKAGE}/")), inner)
    return CodePosition(inner if ours == inner else f"{inner}, called in {ours}", waits)


def _short(path: str) -> str:
    """The path of a source file, from its package down."""
    parts = Path(path).parts
    roots = [index for index, part in enumerate(parts[:-1]) if _ROOTS.fullmatch(part)]
    return "/".join(parts[roots[-1] + 1 if roots else -2 :])

"""Follows a job's output until the job ends, the user stops watching, or contact is lost."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from sfumato.errors import ConfigError, SfumatoError
from sfumato.runtime.jobs.cluster import Cluster, Job

PATIENCE_S = 60.0
_PAUSE_S = 1.0
# What `runtime.runs.display` prints without a terminal: `train: 12,000 of 48,000  loss 0.3  80 s left`, in a
# pipeline after the stage's name; and a sweep of its trials: `trial 3: 512 images  train/loss 0.3`.
_PROGRESS = re.compile(r"^\w[\w ,-]*(: \w[\w ,-]*)?: [\d,]+( of [\d,]+| images)?(  | s so far$)")


class Output:
    """Shows a job's lines; in a terminal, lines of progress replace one another below the rest."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._status: Status | None = None
        self._open = ""

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._status = self.console.status("waiting for the cluster")
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()
        if self._open:
            self._line(self._open)

    def __call__(self, piece: str) -> None:
        """A piece of the job's output, which may end in the middle of a line."""
        *lines, self._open = (self._open + piece).split("\n")
        for line in lines:
            self._line(line)

    def _line(self, line: str) -> None:
        if self._status is not None and _PROGRESS.match(line):
            self._status.update(escape(line))
        else:
            self.console.print(line, markup=False, soft_wrap=True)


def follow(cluster: Cluster, name: str, show: Callable[[str], None]) -> Job:
    """Show the job's output until it ends; returns the finished job.

    A connection that breaks is made again, and nothing is shown twice. Raises SfumatoError when contact is
    lost for longer than a minute, or the cluster no longer knows the job; KeyboardInterrupt on ctrl-C.
    """
    return asyncio.run(_follow(cluster, name, show))


async def _follow(cluster: Cluster, name: str, show: Callable[[str], None]) -> Job:
    import aiohttp

    shown = 0
    while True:
        before = shown
        with contextlib.suppress(RuntimeError, OSError, aiohttp.ClientError):
            async for piece in cluster.tail(name):
                fresh = piece[before:]
                before = max(0, before - len(piece))
                shown += len(fresh)
                if fresh:
                    show(fresh)
        job = await _state(cluster, name)
        if job.over:
            rest = cluster.logs(name)[shown:]
            if rest:
                show(rest)
            return job
        await asyncio.sleep(_PAUSE_S)


async def _state(cluster: Cluster, name: str) -> Job:
    """The job, with retries for a while if the cluster does not answer."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            found = [job for job in cluster.jobs() if job.name == name]
        except ConfigError as error:
            if time.monotonic() > end:
                raise SfumatoError(
                    f"contact with {cluster.address} is lost ({error}); the job may still be running: "
                    f"{attach_command(cluster.address, name)}"
                ) from error
            await asyncio.sleep(_PAUSE_S)
            continue
        if not found:
            raise SfumatoError(
                f"{cluster.address} no longer knows job {name}: its head was restarted. Submit the same "
                "command again; the run resumes from its last checkpoint"
            )
        return found[0]


def progress_in(log: str) -> str:
    """The last line of progress in a job's output; empty where there is none."""
    return next((line.strip() for line in reversed(log.splitlines()) if _PROGRESS.match(line)), "")


def attach_command(address: str, name: str) -> str:
    return f"sfumato jobs attach {name} --address {address}"


def ended(job: Job) -> tuple[int, str]:
    """The exit status of a finished job, and a line that says how it ended."""
    if job.status == "SUCCEEDED":
        return 0, f"job {job.name} is done"
    if job.status == "STOPPED":
        return 1, f"job {job.name} was stopped; the same command resumes from its last checkpoint"
    if job.exit_code:
        return (
            job.exit_code if 0 < job.exit_code < 128 else 1,
            f"job {job.name} failed (status {job.exit_code})",
        )
    reason = (job.message.strip().splitlines() or ["no reason given"])[0][:300]
    return 1, f"job {job.name} failed: {reason}"

"""Ray's daemons of a private cluster end with the command; a SIGTERM or SIGHUP for the command is not theirs.

Batch systems, systemd and `timeout` send SIGTERM to a command's whole process group, or to all that it has
started. A raylet and a GCS that obeyed would be gone before the command has ended its work on them. So
both are blocked in them, as Ray blocks ctrl-C, and the command itself ends them. If the command is killed,
the kernel ends them where it can, and `LastWords` what is left, such as their agents.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

from sfumato.runtime.cluster.last_words import LastWords

_FOR_THE_COMMAND = (signal.SIGTERM, signal.SIGHUP)


class Daemon(subprocess.Popen[bytes]):
    """A daemon in a process group of its own, with the agents that it starts."""

    def __init__(self, *arguments: Any, started: Callable[[int], None], **settings: Any) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_COMMAND)  # the new process inherits it
        try:
            super().__init__(*arguments, process_group=0, **settings)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        started(self.pid)

    def terminate(self) -> None:
        """End it and its agents at once: they keep nothing, and agents alone look for it for a minute."""
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)


@contextlib.contextmanager
def deaf_to_signals(words: LastWords) -> Iterator[None]:
    """What Ray starts inside the block is a `Daemon`, and ends with this process."""
    groups: list[int] = []

    def started(group: int) -> None:
        groups.append(group)
        words.end_too(groups)

    services: Any = importlib.import_module("ray._private.services")
    plain = services.ConsolePopen
    services.ConsolePopen = functools.partial(Daemon, started=started)
    try:
        yield
    finally:
        services.ConsolePopen = plain

"""What is said when the command's own process is ended from below, where Python cannot say anything.

Ray's core ends the process that it is part of as soon as its node's raylet is gone (as after the loss of
the dashboard agent), and 60 s after the loss of the GCS; out of memory, the kernel does. So a small process
of its own waits on a pipe for the end of this one. If nothing took leave before, it ends what this one would
have ended, and speaks.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

_RESUMES = "The same command resumes from the newest checkpoint"
SILENT_END = (
    "this command was ended without a word, or Ray's processes under it were: was one of them killed, or "
    f"memory short? {_RESUMES}"
)
LOST_GCS = f"Ray's GCS process ended under this command: was it killed, or memory short? {_RESUMES}"
_LEAVE = "."
_LISTENER = f"""
import os, signal, sys
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
groups = []
for line in sys.stdin:
    if line.strip() == {_LEAVE!r}:
        sys.exit()
    groups = [int(word) for word in line.split()]
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError:
        pass
sys.stderr.write("error: " + sys.argv[1] + "\\n")
"""
_LOOK_S = 0.5


@dataclass(frozen=True, slots=True)
class LastWords:
    """The process that listens for the end of this one; None where none could be started."""

    listener: subprocess.Popen[bytes] | None

    def take_leave(self) -> None:
        """Nothing needs to be said any more."""
        self._tell(_LEAVE)
        if self.listener is not None and self.listener.stdin is not None:
            with contextlib.suppress(OSError):
                self.listener.stdin.close()
            self.listener.wait()

    def end_too(self, groups: Sequence[int]) -> None:
        """From now on these process groups, in place of those given before, end with this process."""
        self._tell(" ".join(str(group) for group in groups))

    def _tell(self, line: str) -> None:
        if self.listener is not None and self.listener.stdin is not None:
            with contextlib.suppress(OSError, ValueError):  # gone, or told before
                self.listener.stdin.write(f"{line}\n".encode())
                self.listener.stdin.flush()

    @contextlib.contextmanager
    def while_alive(self, alive: Callable[[], bool], line: str, finish: Callable[[], None]) -> Iterator[None]:
        """Ends this process with status 1 and `line` when `alive` says no inside the block, after `finish`.

        For a process of Ray without which everything else waits for a minute before Ray gives up.
        """
        over = threading.Event()

        def look() -> None:
            while not over.wait(_LOOK_S):
                if alive():
                    continue
                os.write(2, f"error: {line}\n".encode())
                with contextlib.suppress(Exception):
                    finish()
                self.take_leave()
                os._exit(1)

        thread = threading.Thread(target=look, daemon=True, name="last words")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@contextlib.contextmanager
def last_words(line: str = SILENT_END) -> Iterator[LastWords]:
    """If this process ends inside the block without leaving it, `line` appears on standard error."""
    try:
        listener = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _LISTENER, line],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # ctrl-C is not meant for it, nor is SIGTERM
        )
    except OSError:  # a machine without room for a process has other worries
        listener = None
    words = LastWords(listener)
    try:
        yield words
    finally:
        words.take_leave()

"""What is said when the command's own process is ended from below, where Python cannot say anything.

Ray's core ends the process that it is part of as soon as its node's raylet is gone (as after the loss of
the dashboard agent), and 60 s after the loss of the GCS; out of memory, the kernel does. So a small process
of its own waits on a pipe for the end of this one, and speaks if nothing took leave before.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_RESUMES = "The same command resumes from the newest checkpoint"
SILENT_END = (
    "this command was ended without a word, or Ray's processes under it were: was one of them killed, or "
    f"memory short? {_RESUMES}"
)
LOST_GCS = f"Ray's GCS process ended under this command: was it killed, or memory short? {_RESUMES}"
_LISTENER = """
import sys
if sys.stdin.buffer.read(1) != b".":
    sys.stderr.write("error: " + sys.argv[1] + "\\n")
"""
_LOOK_S = 0.5


@dataclass(frozen=True, slots=True)
class LastWords:
    """The process that listens for the end of this one; None where none could be started."""

    listener: subprocess.Popen[bytes] | None

    def take_leave(self) -> None:
        """Nothing needs to be said any more."""
        if self.listener is None or self.listener.stdin is None:
            return
        with contextlib.suppress(OSError):
            self.listener.stdin.write(b".")
            self.listener.stdin.close()
        self.listener.wait()

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
            start_new_session=True,  # ctrl-C is not meant for it
        )
    except OSError:  # a machine without room for a process has other worries
        listener = None
    words = LastWords(listener)
    try:
        yield words
    finally:
        words.take_leave()

"""Ends whatever a test process has started and left, however that process ends.

`begin()` marks the environment of this process, which its children inherit, and starts this file as a
program. That waits until the process is gone, even if it was killed, and ends all that bear its mark: Ray's
servers, object stores, ranks. Some have process groups of their own, where ctrl-C does not reach them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

MARK = "SFUMATO_TESTS_OF"
GRACE_S = 3.0


def begin() -> str:
    """The mark of this process and its children."""
    os.environ[MARK] = mark = secrets.token_hex(16)
    command = [sys.executable, "-S", "-E", __file__]
    plain = {key: value for key, value in os.environ.items() if key != MARK}
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=plain,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None
    process.stdin.write(f"{mark}\n")
    process.stdin.flush()
    os.set_inheritable(process.stdin.fileno(), False)
    _kept.append(process)  # its end of the pipe closes with this process
    return mark


_kept: list[subprocess.Popen[str]] = []


def marked(mark: str) -> list[int]:
    """The processes that bear the mark, all but this one."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):
                if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
    return found


def main() -> None:
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    mark = sys.stdin.readline().strip()
    sys.stdin.read()
    time.sleep(GRACE_S)  # for those that end by themselves, in order
    for _ in range(20):
        left = marked(mark)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not left:
            return
        time.sleep(0.2)


if __name__ == "__main__":
    main()

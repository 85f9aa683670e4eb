"""Makes SIGTERM, with which batch systems, containers and `kill` end a command, act like ctrl-C.

In the driver, Ray would print a stack trace of its core and sometimes abort, and the run's record would say
that it is still running.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def like_ctrl_c() -> Iterator[None]:
    """Active while the block runs; enter it again after `ray.init`, which installs its own handlers.

    Calls the current handler of ctrl-C, which is Ray Train's during training. Threads other than the main one
    cannot change handlers; there, the block runs without.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        # Ray's own, if that was there before, has no cluster left to speak to; None: it was not Python's.
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


def _interrupt(number: int, frame: FrameType | None) -> None:
    with contextlib.suppress(OSError):  # said at once: workers may take a while to end their step
        os.write(2, b"SIGTERM received: stopping as at ctrl-C\n")
    handler = signal.getsignal(signal.SIGINT)
    if callable(handler):
        handler(signal.SIGINT, frame)
    else:  # in the background of a shell, ctrl-C is ignored
        raise KeyboardInterrupt

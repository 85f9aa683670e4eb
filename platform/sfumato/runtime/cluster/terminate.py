"""SIGTERM, by which batch systems, containers and `kill` end a command, does what ctrl-C does.

Ray answers it in the driver with a stack trace of its core, and now and then an abort; the run's record would
say that it is still running.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def like_ctrl_c() -> Iterator[None]:
    """While the block runs; to be entered after `ray.init`, which puts handlers of its own in place.

    Whoever handles ctrl-C at that moment is called, as Ray Train is while it trains. Other threads than the
    main one cannot change handlers: the block runs without.
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
    handler = signal.getsignal(signal.SIGINT)
    if callable(handler):
        handler(signal.SIGINT, frame)
    else:  # in the background of a shell, ctrl-C is ignored
        raise KeyboardInterrupt

"""Makes SIGTERM, with which batch systems, containers and `kill` end a command, act like ctrl-C; and SIGHUP,
with which a closed terminal or a lost connection does.

`nohup` has a command ignore SIGHUP; that stays so. When a terminal is gone, the standard streams lead
nowhere, since each attempt to write there would be an error.

Ray installs handlers of its own, in Python and in C++: they exit in the middle of things, print a stack trace
of its core and sometimes abort, and the run's record would say that it is still running. They are kept out.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

_SAME_S = 2.0
"""Two of these signals within this time are one: `timeout` sends SIGTERM to its child and again to its
group; when a terminal closes, the kernel and the shell each send SIGHUP; systemd sends it after SIGTERM."""
_AT_ONCE = "stopping as at ctrl-C"
_LATER = "stopping as soon as Ray has started"
_acted: list[float] = []
"""When the outermost block below last acted upon one of them."""


@contextlib.contextmanager
def like_ctrl_c() -> Iterator[None]:
    """Active while the block runs. Calls the current handler of ctrl-C, which is Ray Train's during training.

    Threads other than the main one cannot change handlers; there, the block runs without.
    """
    if not _in_main_thread():
        yield
        return
    before = {number: signal.signal(number, _interrupt) for number in _ending()}
    if before[signal.SIGTERM] is not _interrupt:
        _acted.clear()
    try:
        yield
    finally:
        _restore(before)


def _ending() -> list[signal.Signals]:
    """The signals that end a command; not SIGHUP if the command is to outlive its terminal."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return [signal.SIGTERM]
    return [signal.SIGTERM, signal.SIGHUP]


def _restore(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler if handler is not None else signal.SIG_DFL)  # None: it was not Python's


def heard() -> bool:
    """Whether one of them ended what the latest outermost `like_ctrl_c` surrounds: other errors followed."""
    return bool(_acted)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """For `ray.init`, which must not be left in the middle: its C++ then aborts.

    They and ctrl-C are answered at once, and raise KeyboardInterrupt at the end of the block; a second one,
    from somebody who has waited long enough, does so where it is.
    """
    if not _in_main_thread():
        yield
        return
    first: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if number != signal.SIGINT and _is_the_same():
            return
        _say(number, _LATER)
        if first:
            raise KeyboardInterrupt
        first.append(number)

    before = {number: signal.getsignal(number) for number in (*_ending(), signal.SIGINT)}
    if before[signal.SIGINT] is signal.SIG_IGN:  # in the background of a shell
        del before[signal.SIGINT]
    for number in before:
        signal.signal(number, note)
    try:
        with _none_of_rays():
            yield
    finally:
        _restore(before)
        if first:
            raise KeyboardInterrupt


@contextlib.contextmanager
def _none_of_rays() -> Iterator[None]:
    """Ray installs no handlers while the block runs. Its workers, which are other processes, still do."""
    constants: Any = importlib.import_module("ray._private.ray_constants")
    utils: Any = importlib.import_module("ray._private.utils")
    without, install = constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER, utils.set_sigterm_handler
    constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER = True
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER, utils.set_sigterm_handler = without, install


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _is_the_same():
        return
    _say(number, _AT_ONCE)
    handler = signal.getsignal(signal.SIGINT)
    if callable(handler):
        handler(signal.SIGINT, frame)
    else:  # in the background of a shell, ctrl-C is ignored
        raise KeyboardInterrupt


def _is_the_same() -> bool:
    """Whether this signal is a repetition of the one before."""
    now = time.monotonic()
    if _acted and now - _acted[-1] < _SAME_S:
        return True
    _acted.append(now)
    return False


def _say(number: int, what: str) -> None:
    name = "ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    _leave_lost_terminal()
    with contextlib.suppress(OSError):  # said at once: workers may take a while to end their step
        os.write(2, f"{name} received: {what}\n".encode())


def _leave_lost_terminal() -> None:
    """Let standard streams that were a terminal which is gone lead nowhere."""
    for stream in (0, 1, 2):
        try:
            os.tcgetpgrp(stream)
        except OSError as error:
            if error.errno != errno.EIO:  # a file, a pipe, or the terminal of another session
                continue
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, stream)
            os.close(nowhere)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()

"""The background thread that empties a run's spool into the tracking server.

A run's processes have roles (the driver, the training worker of rank 0); each role has a folder of
segments and a lock that the sending process holds. A restarted worker waits for the lock, in its
background thread, until the process that it replaces has really ended. It then sends that process's
events before its own: so no event is sent twice or lost.
"""

from __future__ import annotations

import fcntl
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sfumato.tracking.delivery import Delivery, describe, groups
from sfumato.tracking.redact import clean_uri
from sfumato.tracking.spool import Segment

log = logging.getLogger("sfumato")

PAUSE = 0.5
LONGEST_PAUSE = 30.0


class Sender:
    """Sends the segments of a role, oldest first, the last of them while it is being written."""

    def __init__(self, role: Path, own: Segment, delivery: Delivery) -> None:
        self._role = role
        self._own = own
        self._delivery = delivery
        self._closing = threading.Event()
        self._wake = threading.Event()
        self._warned = False
        self._thread = threading.Thread(target=self._run, name=f"tracking-{role.name}", daemon=True)
        self._thread.start()

    def close(self, timeout: float) -> bool:
        """Send the waiting events and end; False if that takes longer than `timeout` seconds."""
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        with locked(self._role, wait=True):
            for segment in Segment.all(self._role):
                # A newer one belongs to a successor that waits for the lock.
                if segment.folder.name < self._own.folder.name:
                    # An end mark from an earlier process does not end this one.
                    self._drain(segment, skip_end=True)
                    segment.remove()
            while True:
                closing = self._closing.is_set()
                self._drain(self._own, skip_end=False)
                if closing:
                    break
                self._wake.wait(PAUSE)
            self._own.remove()

    def _drain(self, segment: Segment, *, skip_end: bool) -> None:
        pause = PAUSE
        while True:
            try:
                drain(segment, self._delivery, skip_end=skip_end)
                self._warned = False
                return
            except Exception as error:  # noqa: BLE001 - whatever fails, training must continue
                self._warn(error)
                self._closing.wait(pause) if not self._closing.is_set() else time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            reason = clean_uri(describe(error))
            log.warning("tracking: cannot send now, keeping events on disk (%s)", reason)
        self._warned = True


def drain(segment: Segment, delivery: Delivery, *, skip_end: bool = False) -> None:
    """Send every event of a segment that has not arrived; raises if the server does not take them."""
    for events, offset in groups(segment.unsent()):
        if not (skip_end and events[0]["kind"] == "end"):
            delivery.send(segment, events)
        segment.mark_sent(offset)
        for event in events:
            if "file" in event:
                segment.forget(event["file"])


def drain_others(spool: Path, but: str, delivery: Delivery) -> None:
    """Send the events of other roles that no living process will send."""
    for role in sorted(path for path in spool.iterdir() if path.is_dir() and path.name != but):
        with locked(role, wait=False) as held:
            for segment in Segment.all(role) if held else []:
                drain(segment, delivery)
                segment.remove()


@contextmanager
def locked(role: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the lock of a role, released however the process ends. Yields whether it is held."""
    role.mkdir(parents=True, exist_ok=True)
    with (role / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True

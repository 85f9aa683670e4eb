"""Who works on a folder: a second process on it is refused while the first lives.

The process that works on a folder keeps `owner.json` in it and touches that file every `BEAT_S`. On the same
machine the process table says whether the owner lives. For an owner on another machine the file tells: one
that has not been touched for `SILENT_S`, by the clock of the file system, belongs to a dead process.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from sfumato.core.drafts import beside
from sfumato.errors import ConfigError

FILE = "owner.json"
BEAT_S = 5.0
SILENT_S = 30.0


@dataclass(frozen=True, slots=True)
class Owner:
    """A process. `machine` separates machines, their boots, and containers that share a machine's name."""

    host: str
    pid: int
    started: float
    machine: str

    @classmethod
    def here(cls) -> Owner:
        return cls(socket.gethostname(), os.getpid(), psutil.Process().create_time(), _machine())

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@contextlib.contextmanager
def working(
    folder: Path,
    note: Callable[[str], None],
    *,
    take_over: bool = False,
    offer: str = ", or take the run over with --take-over",
    beat_s: float = BEAT_S,
    silent_s: float = SILENT_S,
) -> Iterator[None]:
    """Own the folder, which exists, until the block ends; `note` hears what takes longer.

    With `take_over`, a living owner is not asked: it stops at its next report. `offer` ends the message.

    Raises:
        ConfigError: another process works on the folder.
    """
    path, here = folder / FILE, Owner.here()
    owner = _read(path)
    if owner is not None and owner != here and not take_over and _lives(owner, path, note, beat_s, silent_s):
        raise ConfigError(f"{owner} is working on {folder.name}: wait for it or stop it{offer}")
    partial = beside(path)
    partial.write_text(json.dumps(asdict(here)))
    partial.replace(path)
    ended = threading.Event()
    thread = threading.Thread(target=_beat, args=(path, here, ended, beat_s), daemon=True, name="owner")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if _read(path) == here:
            path.unlink(missing_ok=True)


def _beat(path: Path, here: Owner, ended: threading.Event, beat_s: float) -> None:
    while not ended.wait(beat_s):
        with contextlib.suppress(OSError):  # a storage that is away for a moment; the next beat tries again
            if _read(path) == here:
                os.utime(path)


def _read(path: Path) -> Owner | None:
    try:
        return Owner(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _lives(owner: Owner, path: Path, note: Callable[[str], None], beat_s: float, silent_s: float) -> bool:
    if owner.machine == _machine():
        try:
            process = psutil.Process(owner.pid)
            return process.create_time() == owner.started and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False
    silent = _now(path.parent) - _touched(path)
    if silent < silent_s:
        note(f"{owner} was working on {path.parent.name} {silent:.0f} s ago: looking whether it still is")
    seen = _touched(path)
    while _now(path.parent) - _touched(path) < silent_s:
        if _touched(path) > seen:
            return True
        time.sleep(beat_s / 5)
    return False


def _touched(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _now(folder: Path) -> float:
    """The time by the clock of the folder's file system, which may be another machine's."""
    probe = beside(folder / FILE)
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _machine() -> str:
    """This boot of this machine, and the container in it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}-{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()

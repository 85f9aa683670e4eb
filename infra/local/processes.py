"""Long-running programs by pid files: each in a process group of its own, ended by that group and no name."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

_GRACE_S = 10.0


class StackError(Exception):
    """What the user should read: one line."""


@dataclass(frozen=True)
class Program:
    """A program of the stack. `ready` says whether it answers; `user` is who it runs as, None for us."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    ready: Callable[[], bool]
    patience: float = 120.0
    user: str | None = None


class Processes:
    """Programs that run in the background, one pid file and one log each in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def start(self, program: Program) -> None:
        """Start it unless it runs, and wait until it answers. Raises StackError where it does not."""
        process = None
        if self.running(program.name) is None:
            log = self.log(program.name)
            with log.open("ab") as output:
                process = subprocess.Popen(
                    program.command,
                    env={**os.environ, **program.environment},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    user=program.user,
                    cwd="/" if program.user else None,
                )
            self._remember(program.name, process.pid)
        self._wait(program, process)

    def stop(self, name: str) -> bool:
        """End the program's whole group, gently first; whether it ran."""
        process = self.running(name)
        if process is not None:
            for sign in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, sign)
                if self._gone(process.pid):
                    break
        self._file(name).unlink(missing_ok=True)
        return process is not None

    def running(self, name: str) -> psutil.Process | None:
        """The program's process, if it is alive and still the one that was started."""
        try:
            known = json.loads(self._file(name).read_text())
            process = psutil.Process(known["pid"])
            # A number may have gone to another program since; its time of birth tells.
            same = abs(process.create_time() - known["born"]) < 1.0
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except (OSError, ValueError, psutil.Error):
            return None

    def log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.pid"

    def _remember(self, name: str, pid: int) -> None:
        with contextlib.suppress(psutil.Error):  # it ended at once, which waiting for it will tell
            born = psutil.Process(pid).create_time()
            self._file(name).write_text(json.dumps({"pid": pid, "born": born}))

    def _wait(self, program: Program, process: subprocess.Popen[bytes] | None) -> None:
        deadline = time.monotonic() + program.patience
        while not program.ready():
            if process is not None and process.poll() is not None:
                raise StackError(f"{program.name} ended at once: {self._last_words(program.name)}")
            if time.monotonic() > deadline:
                log = self.log(program.name)
                raise StackError(f"{program.name} does not answer after {program.patience:.0f} s: see {log}")
            time.sleep(0.2)

    def _last_words(self, name: str) -> str:
        lines = self.log(name).read_text(errors="replace").strip().splitlines() or ["it said nothing"]
        return f"{lines[-1][:200]} (all of it: {self.log(name)})"

    @staticmethod
    def _gone(group: int) -> bool:
        """Whether the whole group ended in time; we may be its parent, and have to reap its leader."""
        deadline = time.monotonic() + _GRACE_S
        while time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(group, os.WNOHANG)
            try:
                os.killpg(group, 0)
            except ProcessLookupError:
                return True
            time.sleep(0.1)
        return False

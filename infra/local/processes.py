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
    """A program of the stack. `ready` says whether it answers; `user` is who it runs as, None for us.

    One that ends before it answers is started again, up to `attempts` times in all.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    ready: Callable[[], bool]
    patience: float = 120.0
    user: str | None = None
    attempts: int = 1


class Processes:
    """Programs that run in the background, one pid file and one log each in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def start(self, program: Program) -> None:
        """Start it unless it runs, and wait until it answers. Raises StackError where it does not."""
        for left in reversed(range(program.attempts)):
            process = self._launch(program) if self.running(program.name) is None else None
            if self._answers(program, process):
                return
            if left == 0:
                raise StackError(f"{program.name} ended at once: {self._last_words(program.name)}")

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

    def _launch(self, program: Program) -> subprocess.Popen[bytes]:
        with self.log(program.name).open("ab") as output:
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
        with contextlib.suppress(psutil.Error):  # it ended at once, which waiting for it will tell
            born = psutil.Process(process.pid).create_time()
            self._file(program.name).write_text(json.dumps({"pid": process.pid, "born": born}))
        return process

    def _answers(self, program: Program, process: subprocess.Popen[bytes] | None) -> bool:
        """True when it answers, False when it has ended. Raises StackError when it does neither in time."""
        deadline = time.monotonic() + program.patience
        while not program.ready():
            if process is not None and process.poll() is not None:
                return False
            if time.monotonic() > deadline:
                log = self.log(program.name)
                raise StackError(f"{program.name} does not answer after {program.patience:.0f} s: see {log}")
            time.sleep(0.2)
        return True

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

"""SIGTERM and SIGHUP as ctrl-C: once for each time that is meant, and never in the middle of Ray's start."""

from __future__ import annotations

import importlib
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sfumato.runtime.cluster import terminate


@pytest.fixture(autouse=True)
def as_in_a_new_process() -> Iterator[None]:
    """Clusters and trainings of other tests leave Ray's handlers."""
    before = {sign: signal.getsignal(sign) for sign in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGHUP])
def test_twice_at_once_interrupts_once(
    first: signal.Signals, second: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    """As `timeout`, shells and systemd send them. The second must not end what the first began to tidy up."""
    tidied = []

    def command() -> None:
        assert not terminate.heard()
        try:
            signal.raise_signal(first)
        finally:
            signal.raise_signal(second)
            tidied.append(True)

    with terminate.like_ctrl_c(), pytest.raises(KeyboardInterrupt):
        command()
    assert tidied and terminate.heard()
    assert capfd.readouterr().err == f"{first.name} received: stopping as at ctrl-C\n"
    with terminate.like_ctrl_c():
        assert not terminate.heard(), "another command in the same process"


def test_sigterm_again_later_interrupts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminate, "_SAME_S", 0)
    with terminate.like_ctrl_c():
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("fails", [False, True])
def test_rays_start_is_interrupted_when_it_is_over(
    sign: signal.Signals, fails: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    utils: Any = importlib.import_module("ray._private.utils")

    done = []

    @terminate.held_back()
    def start() -> None:
        utils.set_sigterm_handler(signal.SIG_IGN)  # as ray.init does
        signal.raise_signal(sign)
        done.append(True)
        if fails:
            raise RuntimeError("The current node timed out during startup.")

    with terminate.like_ctrl_c():
        with pytest.raises(KeyboardInterrupt):
            start()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert done
    name = "ctrl-C" if sign == signal.SIGINT else sign.name
    assert capfd.readouterr().err == f"{name} received: stopping as soon as Ray has started\n"
    utils.set_sigterm_handler(signal.default_int_handler)
    assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler, "elsewhere Ray sets what it wants"


def test_whoever_asks_twice_does_not_wait_for_rays_start() -> None:
    later = []

    @terminate.held_back()
    def start() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        later.append(True)

    with pytest.raises(KeyboardInterrupt):
        start()
    assert not later


def test_ctrl_c_stays_ignored_in_the_background_of_a_shell() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with terminate.held_back():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_sighup_stays_ignored_under_nohup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with terminate.like_ctrl_c(), terminate.held_back():
        signal.raise_signal(signal.SIGHUP)
    assert not terminate.heard() and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


IN_A_TERMINAL = """
import os, sys, time
from pathlib import Path
from rich.console import Console
from sfumato.runtime.cluster import terminate

told = Path(sys.argv[1])
try:
    with terminate.like_ctrl_c():
        print("works", flush=True)
        time.sleep(600)
except KeyboardInterrupt:
    Console(stderr=True).print("interrupted")
    print("results", flush=True)
    told.write_text("tidied up")
"""


def test_a_closed_terminal_interrupts_and_what_is_said_then_is_no_error(tmp_path: Path) -> None:
    """A session of its own at a pseudo-terminal, as ssh makes it, whose other end closes."""
    told = tmp_path / "told"
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", IN_A_TERMINAL, str(told)]
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, pty, sys; os.login_tty(0); os.execv(sys.argv[1], sys.argv[1:])",
            *command,
        ],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    said = b""
    while b"works" not in said:
        said += os.read(ours, 1024)
    os.close(ours)
    assert process.wait(timeout=120) == 0
    assert told.read_text() == "tidied up"

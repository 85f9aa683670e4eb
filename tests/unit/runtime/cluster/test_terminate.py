"""SIGTERM as ctrl-C: once for each time that it is meant, and never in the middle of Ray's start."""

from __future__ import annotations

import importlib
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from sfumato.runtime.cluster import terminate


@pytest.fixture(autouse=True)
def as_in_a_new_process() -> Iterator[None]:
    """Clusters and trainings of other tests leave Ray's handlers."""
    before = {sign: signal.getsignal(sign) for sign in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_sigterm_twice_at_once_interrupts_once(capfd: pytest.CaptureFixture[str]) -> None:
    """As `timeout` sends it. The second must not end what the first has begun to tidy up."""
    tidied = []

    def command() -> None:
        assert not terminate.heard()
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            tidied.append(True)

    with terminate.like_ctrl_c(), pytest.raises(KeyboardInterrupt):
        command()
    assert tidied and terminate.heard()
    assert capfd.readouterr().err == "SIGTERM received: stopping as at ctrl-C\n"
    with terminate.like_ctrl_c():
        assert not terminate.heard(), "another command in the same process"


def test_sigterm_again_later_interrupts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminate, "_SAME_S", 0)
    with terminate.like_ctrl_c():
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
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
    name = "SIGTERM" if sign == signal.SIGTERM else "ctrl-C"
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

"""A rank that does not get on is named by its line and ended, by real actors and a real board."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import pytest
import ray

from sfumato.core.progress import Progress
from sfumato.runtime.training import progress_actor as boards
from sfumato.runtime.training import watchdog
from sfumato.runtime.training.heartbeat import Pulse

TIMEOUT_S = 2.0


def rank_class() -> Any:
    """An actor; made here, since workers cannot import this module."""

    @ray.remote(num_cpus=0)
    class Rank:
        """Takes steps of a tenth of a second, until it is told to stay in one."""

        def __init__(self, board: object) -> None:
            self._endless = False
            threading.Thread(target=self._train, args=(board,), daemon=True).start()

        def _train(self, board: object) -> None:
            pulse = Pulse(board, "attempt", 0, TIMEOUT_S)
            with pulse.beating():
                time.sleep(1.5 * TIMEOUT_S)  # start-up, which is not timed
                for step in range(1, 10_000):
                    pulse.stepped(Progress(step, 8 * step, 80_000, 8))
                    self._step()

        def _step(self) -> None:
            time.sleep(0.1)
            while self._endless:
                time.sleep(0.1)

        def stay(self) -> None:
            self._endless = True

        def sleep(self) -> None:
            time.sleep(60)

        def pid(self) -> int:
            return os.getpid()

    return Rank


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("kind", ["endless", pytest.param("frozen", marks=pytest.mark.slow)])
def test_a_rank_that_gets_on_is_left_alone_and_one_that_does_not_is_ended(kind: str) -> None:
    board = boards.create("hang")
    with watchdog.watching(board, TIMEOUT_S):
        rank = rank_class().remote(board)
        pid = ray.get(rank.pid.remote())
        time.sleep(2.5 * TIMEOUT_S)
        assert ray.get(board.snapshot.remote()).notes == []
        if kind == "endless":
            ray.get(rank.stay.remote())
        else:
            os.kill(pid, signal.SIGSTOP)
        with pytest.raises(ray.exceptions.RayActorError):
            ray.get([rank.pid.remote(), rank.sleep.remote()], timeout=600)
    (note,) = ray.get(board.snapshot.remote()).notes
    assert f"rank 0 (process {pid} on " in note
    if kind == "endless":
        assert "is stuck in integration/test_runtime_hang.py:" in note and " _step;" in note
    else:
        assert "does not answer;" in note

"""Training waits for evaluations as far as it was told to, and never after its last snapshot."""

from __future__ import annotations

import threading
import time

import pytest

from sfumato.core.progress import Progress
from sfumato.runtime.training import progress_actor as boards
from sfumato.runtime.training.backpressure import Brake

EVERY, TOTAL = 100, 400


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("ahead", [1, 2, None])
def test_no_more_snapshots_wait_than_may(ahead: int | None) -> None:
    board = boards.create("brake")
    passed: list[int] = []
    brake = Brake(board, ahead, leads=True, agree=lambda value: value)

    def train() -> None:
        for images in range(EVERY, TOTAL + 1, EVERY):
            brake(Progress(images // 10, images, TOTAL, 10))
            passed.append(images)

    thread = threading.Thread(target=train)
    thread.start()
    for evaluated in range(0, TOTAL, EVERY):
        board.evaluated.remote(evaluated)
        # After snapshot s it goes on once s - ahead is evaluated; nothing follows the last one.
        may = TOTAL if ahead is None else min(evaluated + ahead * EVERY, TOTAL)
        may = TOTAL if may == TOTAL - EVERY else may
        end = time.monotonic() + 20
        while (passed or [0])[-1] < may and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(0.4)
        assert passed[-1] == may
    thread.join(10)
    assert passed[-1] == TOTAL

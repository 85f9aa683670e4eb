"""Training waits for evaluations as far as it was told to, and never after its last snapshot."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from repository import DIGITS
from rich.console import Console

from sfumato import recipe as recipes
from sfumato.core.progress import Progress
from sfumato.runtime.runs.display import Display
from sfumato.runtime.runs.run_folder import RunFolder, snapshot_folder
from sfumato.runtime.training import progress_actor as boards
from sfumato.runtime.training.backpressure import Brake
from sfumato.runtime.training.validation import TrainingEvaluations
from sfumato.sampling.model_folder import CARD

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
        end = time.monotonic() + 600
        while (passed or [0])[-1] < may and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(0.4)
        assert passed[-1] == may
    thread.join(600)
    assert passed[-1] == TOTAL


@pytest.mark.usefixtures("ray_local")
def test_training_does_not_wait_for_a_thread_that_died(tmp_path: Path) -> None:
    """Something in `snapshots/` that no evaluation wrote ends the thread that looks there."""
    recipe = recipes.load(DIGITS, [f"evaluate.every={EVERY}", "evaluate.ahead=1", f"storage={tmp_path}"])
    folder, board, said = RunFolder(tmp_path / "run"), boards.create("dead"), io.StringIO()
    tracker = SimpleNamespace(open=lambda what: SimpleNamespace(close=lambda: None))
    display = Display(Console(file=said, width=200))
    brake = Brake(board, ahead=1, leads=True, agree=lambda value: value)
    stray = folder.path / "snapshots" / "images-unknown"
    stray.mkdir(parents=True)
    (stray / CARD).write_text("{}")

    def train() -> None:
        for images in range(EVERY, TOTAL, EVERY):
            brake(Progress(images // 10, images, TOTAL, 10))

    thread = threading.Thread(target=train, daemon=True)
    with TrainingEvaluations(recipe, folder, tracker, display, board):  # type: ignore[arg-type]
        thread.start()
        thread.join(600)
        assert not thread.is_alive(), "training waits for an evaluation that nobody makes"
        assert "evaluations during training have ended (ValueError: " in said.getvalue()
        left = snapshot_folder(folder, EVERY)
        left.mkdir()
        (left / CARD).write_text("{}")
    assert "not evaluated" in said.getvalue()

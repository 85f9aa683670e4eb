"""How deep the stack is from the command to the optimizer's step, as a run has it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from call_spy import own_calls
from tiny_recipe import write_tiny_recipe

from sfumato.runtime.training.trainer import Trainer

MOST = 10


@pytest.mark.usefixtures("ray_local")
def test_ten_calls_to_the_optimizer(
    digits_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sfumato_here: Callable[..., tuple[int, str, str]],
) -> None:
    driver: list[str] = []
    fit = Trainer.fit

    def at_fit(trainer: Any) -> Any:
        driver.extend(own_calls(sys._getframe(1)))
        return fit(trainer)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Trainer, "fit", at_fit)
    told = tmp_path / "worker.json"
    train: dict[str, Any] = {"images": 512, "log_every": 256, "checkpoint": {"every": 512}}
    model = {"family": "call_spy:Spied", "told": str(told)}
    path = write_tiny_recipe(tmp_path, digits_data, model=model, train=train, data={"read_tasks": 0})
    status, _, said = sfumato_here("train", str(path))
    assert status == 0, said

    worker = json.loads(told.read_text())
    assert driver[-1] == "runtime/training/ray_train.py:fit" and driver[0].endswith(":main"), driver
    worker = worker[worker.index("runtime/training/job.py:train_worker") :]
    assert worker[0] == "runtime/training/job.py:train_worker", worker
    assert len(driver) + len(worker) <= MOST, [*driver, *worker]

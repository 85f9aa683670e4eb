"""A training run with a worker that is stuck says which and where, and ends with the weights of a calm one.

The reference is computed by plain processes without Ray (tests/support/train_rank.py).
"""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
from repository import PLATFORM
from train_runs import (
    TIMEOUT_S,
    assert_model_is,
    newest,
    reference,
    sfumato,
    workers,
    write_recipe,
)
from waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# A family of the user's own, in a module beside the recipe: on one rank its 100th step has no end, once.
ENDLESS = """
import time
from pathlib import Path

import torch.distributed as dist

from sfumato.families.flow.config import FlowConfig
from sfumato.families.flow.family import FlowFamily

ONCE = Path(__file__).with_name("once")


def sleep_for_ever():
    while True:
        time.sleep(1)


class Sleepy(FlowFamily):
    def prepare(self, nets, batch, progress, rng):
        if ONCE.exists() and dist.get_rank() == 1:
            Sleepy.steps = getattr(Sleepy, "steps", 0) + 1
            if Sleepy.steps == 100:
                ONCE.unlink()
                sleep_for_ever()
        return super().prepare(nets, batch, progress, rng)


class Config(FlowConfig):
    family: str = "endless:Config"

    def build(self, data):
        return Sleepy(self, data)
"""


def test_a_frozen_worker_is_named_and_changes_no_bit(digits_data: Path, tmp_path: Path) -> None:
    calm = reference(tmp_path, digits_data)
    recipe = str(write_recipe(tmp_path, digits_data))
    with sfumato(tmp_path, "train", recipe, "parallel.hang_timeout=10") as process:
        wait_for("a checkpoint", lambda: newest(tmp_path) >= 4_000, process=process)
        frozen = workers(process)[1]
        frozen.send_signal(signal.SIGSTOP)
        _, said = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, said
    assert re.search(rf"rank [01] \(process {frozen.pid} on [0-9.]+\) does not answer", said), said
    assert re.search(r"rank [01] \(process \d+ on [0-9.]+\) is waiting for others in torch/", said), said
    assert said.count("training was stuck") == 1 and "Traceback" not in said
    assert "training resumes from the checkpoint at" in said
    assert_model_is(tmp_path, calm)


def test_a_step_without_end_is_told_by_its_line(
    digits_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = reference(tmp_path, digits_data)
    recipe = write_recipe(tmp_path, digits_data, model={"family": "endless:Config"})
    (tmp_path / "endless.py").write_text(ENDLESS)
    (tmp_path / "once").touch()
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{PLATFORM}")
    with sfumato(tmp_path, "train", str(recipe), "parallel.hang_timeout=10") as process:
        _, said = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, said
    assert re.search(
        r"rank 1 \(process \d+ on [0-9.]+\) is stuck in \S*/endless\.py:\d+ sleep_for_ever, called in "
        r"sfumato/training/loop\.py:\d+ _loss; rank 0 \(.*\) is waiting for others",
        said,
    ), said
    assert said.count("training was stuck") == 1 and "Traceback" not in said
    assert_model_is(tmp_path, calm)

"""How deep the stack is from the command to the optimizer's step, as a run has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny_recipe import write_tiny_recipe
from train_runs import TIMEOUT_S, sfumato

MOST = 10
SPY = '''
"""The flow family under another name; says which of this package's functions are on the stack."""
import json
import sys
import traceback
from pathlib import Path
from typing import Literal

import sfumato
from sfumato.families.flow import Config
from sfumato.runtime.training.trainer import Trainer
from torch.optim.optimizer import register_optimizer_step_pre_hook

HERE, PACKAGE = Path(__file__).parent, str(Path(sfumato.__file__).parent)


class Spied(Config):
    family: Literal["spy:Spied"] = "spy:Spied"


def own(frame):
    """Calls of the package, outermost first; a function that runs a generator's body is no call."""
    return [
        f"{Path(entry.filename).relative_to(PACKAGE)}:{entry.name}"
        for entry in traceback.StackSummary.extract(traceback.walk_stack(frame), lookup_lines=False)
        if entry.filename.startswith(PACKAGE) and entry.name != "<module>"
    ][::-1]


def at_step(*_):
    found = HERE / "worker.json"
    if not found.exists():
        found.write_text(json.dumps(own(sys._getframe(1))))


def at_fit(trainer):
    (HERE / "driver.json").write_text(json.dumps(own(sys._getframe(1))))
    return fit(trainer)


register_optimizer_step_pre_hook(at_step)
fit, Trainer.fit = Trainer.fit, at_fit
'''


def test_ten_calls_to_the_optimizer(digits_data: Path, tmp_path: Path) -> None:
    (tmp_path / "spy.py").write_text(SPY)
    train: dict[str, Any] = {"images": 512, "log_every": 256, "checkpoint": {"every": 512}}
    path = write_tiny_recipe(
        tmp_path, digits_data, model={"family": "spy:Spied"}, train=train, data={"read_tasks": 0}
    )
    with sfumato(tmp_path, "train", str(path)) as process:
        _, said = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, said
    driver = json.loads((tmp_path / "driver.json").read_text())
    worker = json.loads((tmp_path / "worker.json").read_text())
    assert driver[-1] == "runtime/training/ray_train.py:fit" and driver[0].endswith(":main"), driver
    worker = worker[worker.index("runtime/training/job.py:train_worker") :]
    assert worker[0] == "runtime/training/job.py:train_worker", worker
    assert len(driver) + len(worker) <= MOST, [*driver, *worker]

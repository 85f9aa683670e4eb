"""Registers Ray Train's controller on a run's board, so that the run can be ended from outside its `fit`.

Ray Train does not expose its controller, but a sweep that gives up a trial must free the trial's workers at
once. Ray Train itself calls this kind of callback a workaround; it is not part of its public interface.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.train.v2._internal.execution.callback import ControllerCallback

from sfumato.runtime.training.controller_handle import packed


class Introduce(ControllerCallback):
    """Runs in the controller's process."""

    def __init__(self, board: Any) -> None:
        self._board = board

    def after_controller_start(self, train_run_context: Any) -> None:
        controller = ray.get_runtime_context().current_actor
        ray.get(self._board.introduce.remote(packed(controller)))

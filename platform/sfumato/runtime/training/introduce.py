"""Makes Ray Train's controller known on a run's board, so that the run can be ended from outside its `fit`.

Ray Train hands its controller to nobody, and a trial of a sweep that is given up must free its workers at
once. The callback is of a kind that Ray Train itself calls a workaround, and not of its public interface.
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

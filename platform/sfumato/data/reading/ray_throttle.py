"""Limits the pace of the loop in which Ray Data executes a Dataset.

The loop's only wait is `ray.wait` on the running tasks. It returns at once if none runs, because all are done
or the next one waits for room, while the consumer has not reached their rows; or if all that run have rows
that may not be taken yet. The loop then takes a whole core for as long as the consumer is the slower one
and, being a thread of the training worker, takes the interpreter's lock from training.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ray.data._internal.execution.execution_callback import ExecutionCallback

if TYPE_CHECKING:
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

STEP_S = 0.05
"""The shortest time from one step to the next. `ray.wait` may take twice as long; a step delivers up to tens
of megabytes here, so that a fast consumer does not wait for steps."""


class Pace(ExecutionCallback):
    """For `DataContext.custom_execution_callback_classes`: one for each Dataset that is executed."""

    def __init__(self) -> None:
        self._last = 0.0

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        """Sleep for the rest of the step's time."""
        left = self._last + STEP_S - time.perf_counter()
        if left > 0:
            time.sleep(left)
        self._last = time.perf_counter()

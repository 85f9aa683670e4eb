"""Checkpoints on notice: a node is about to be taken away, or more workers are about to replace these.

Ray Train tells the workers of a node that is drained (`ray.train.get_preemption_info`), and its controller
tells the board before it changes the number of workers. All ranks look about once a second, at the same step,
and then write a checkpoint and wait until it is complete.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray
import ray.train
from ray.train.v2._internal.execution.callback import ControllerCallback

from sfumato.core.progress import Progress

_LOOK_S = 1.0
_MOST_STEPS = 100
"""Seconds between two looks; steps may become much slower in between."""
_MARGIN_S = 5.0
_UNKNOWN_S = 120.0
"""How long Ray Train lets workers continue if it has no deadline."""
_GRACE_S = 30.0
"""Time after the deadline; if nothing has happened by then, training continues."""
_PATIENCE_S = 120.0


class Departures:
    """Decides when to save because nodes go away: at the notice, and again shortly before the deadline.

    After that the ranks wait for Ray Train to restart them, which it does at the deadline: further steps
    would be lost, and a step that fails because a node is gone would count as a failure of training.
    """

    def __init__(self) -> None:
        self._nodes: frozenset[str] = frozenset()
        self._noticed = 0.0
        self._last = False

    def due(self, info: Any, now: float, took_s: float) -> float | None:
        """Whether to save at time `now` (UNIX seconds): None, or the time until which to wait afterwards.

        `took_s` is the duration of the last such checkpoint.
        """
        if info is None:
            return None
        nodes = frozenset(info.preempted_node_ids)
        if nodes != self._nodes:
            self._nodes, self._noticed, self._last = nodes, now, False
            return now
        deadline = info.deadline_ms / 1000 if info.deadline_ms else self._noticed + _UNKNOWN_S
        if self._last or deadline - now > _MARGIN_S + 3 * took_s:
            return None
        self._last = True
        return deadline + _GRACE_S


class SaveOnNotice:
    """Called by every rank after each step. `agree` gives all ranks the value of rank 0, which `leads`."""

    def __init__(
        self,
        board: Any,
        *,
        leads: bool,
        agree: Callable[[Any], Any],
        save: Callable[[Progress], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._board, self._leads, self._agree, self._save, self._clock = board, leads, agree, save, clock
        self._departures = Departures()
        self._steps = self._left = 1
        self._looked = clock()
        self._took_s = 0.0

    def __call__(self, progress: Progress) -> None:
        self._left -= 1
        if self._left > 0 or progress.images >= progress.total_images:
            return
        info = ray.train.get_preemption_info()  # which all ranks have to call equally often
        leaving, asked, self._left = self._agree(self._look(info) if self._leads else None)
        self._steps = self._left
        if leaving is None and not asked:
            return
        started = self._clock()
        self._save(progress)
        self._took_s = self._clock() - started
        if self._leads:
            if leaving is not None:
                self._board.note.remote(
                    f"{len(info.preempted_node_ids)} node(s) with workers are about to be taken away: "
                    f"checkpoint at {progress.images:,} images"
                )
            self._board.saved.remote(asked)
        self._wait(leaving or 0.0)

    def _wait(self, until: float) -> None:
        """Waits outside of any collective, so that no rank fails because another's node is gone."""
        while self._clock() < until:
            time.sleep(0.2)

    def _look(self, info: Any) -> tuple[float | None, int, int]:
        """The decision of `Departures`, the request on the board, and after how many steps to look again."""
        now = self._clock()
        a_second = self._steps / max(now - self._looked, 1e-6)
        self._looked = now
        leaving = self._departures.due(info, now, self._took_s)
        steps = min(max(1, int(a_second * _LOOK_S)), _MOST_STEPS)
        return leaving, ray.get(self._board.save_asked.remote()), steps


class SaveBeforeResize(ControllerCallback):
    """Requests a checkpoint before Ray Train replaces the workers by more; runs in the controller's process.

    This kind of callback is not part of Ray's public interface, as in `runtime.training.introduce`.
    """

    def __init__(self, board: Any) -> None:
        self._board = board

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        if type(current_state).__name__ != "ResizingState":
            return
        workers = current_state.scaling_decision.num_workers
        self._board.note.remote(f"training continues with {workers} workers")
        ticket = ray.get(self._board.ask_save.remote())
        end = time.monotonic() + _PATIENCE_S
        while ray.get(self._board.save_asked.remote()) >= ticket and time.monotonic() < end:
            time.sleep(0.1)

"""Writes Ray Tune's events to the sweep's journal, and shows them as they happen."""

from __future__ import annotations

import math
import time
from typing import Any

from ray.tune import Callback

from sfumato.runtime.sweep.screen import Screen
from sfumato.runtime.sweep.sweep_plan import SweepPlan
from sfumato.runtime.sweep.training import FAILURE
from sfumato.runtime.sweep.trial import values_of
from sfumato.tuning.journal import Journal

_TIME_S = 20.0


class Progress(Callback):
    """Tune's trials by number; a trial's name is its number, whatever weights it took over."""

    def __init__(self, plan: SweepPlan, journal: Journal, screen: Screen, scheduler: str) -> None:
        self._plan = plan
        self._journal = journal
        self._screen = screen
        self._scheduler = scheduler
        self._earlier = journal.seconds
        self._started = time.monotonic()
        self._noted = self._started
        self._handed: set[str] = {
            token for trial in journal.in_order() if (token := self._token(trial.number)) is not None
        }

    def images(self) -> int:
        return self._journal.total_images()

    def seconds(self) -> float:
        return self._earlier + time.monotonic() - self._started

    def note_time(self) -> None:
        self._journal.add("time", seconds=round(self.seconds(), 1))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if time.monotonic() - self._noted > _TIME_S:
            self._noted = time.monotonic()
            self.note_time()
        self._screen.update()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number = int(str(trial))
        if self._journal.trials[number].status != "running":
            self._journal.add("start", number)
            self._screen.started(number)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        number = int(str(trial))
        token = self._token(number)
        if token is not None and token not in self._handed:
            self._handed.add(token)
            source = self._plan.folder(number).read_json("handed.json")
            self._journal.add("handed", number, source=source["from"], values=values_of(trial.config))
            self._screen.handed(number)
        if not math.isnan(result["objective"]) or "finished" in result:
            self._journal.add("report", number, images=result["images"], value=result["objective"])
            self._screen.reported(number)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number, last = int(str(trial)), trial.last_result
        if "failed" in last:
            self._end(number, "failed", last["failed"])
        elif "finished" in last:
            self._end(number, "finished")
        elif not {"held", "missing"} & set(last):
            self._end(number, "stopped", f"{self._scheduler} at {last.get('images', 0):,} images")

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number = int(str(trial))
        self._journal.add("retry", number, reason=self._reason(number))
        self._screen.retried(number)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number = int(str(trial))
        self._end(number, "failed", self._reason(number))

    def _end(self, number: int, status: str, reason: str = "") -> None:
        self._journal.add("end", number, status=status, reason=reason)
        self._screen.ended(number)

    def _reason(self, number: int) -> str:
        known = self._plan.folder(number).read_json(FAILURE)
        return str(known["reason"]) if known else "its process ended without an error (out of memory?)"

    def _token(self, number: int) -> str | None:
        known = self._plan.folder(number).read_json("handed.json")
        return str(known["token"]) if known else None

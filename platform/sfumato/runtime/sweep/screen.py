"""Shows a sweep: a live table in a terminal, one line per event elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live

from sfumato.runtime.sweep.sweep_plan import SweepPlan
from sfumato.runtime.sweep.training import PROGRESS
from sfumato.tuning import table
from sfumato.tuning.journal import Journal, Trial, best_of

_REFRESH_S = 1.0


class Screen:
    """Shows the journal's trials; events appear once they are recorded."""

    def __init__(
        self, console: Console, plan: SweepPlan, journal: Journal, fields: Sequence[str], trials: int | None
    ) -> None:
        self._console = console
        self._plan = plan
        self._journal = journal
        self._fields = fields
        self._trials = trials
        self._drawn = 0.0
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self) -> None:
        """Draw the table again, if there is one and it is time."""
        if self._live is None or time.monotonic() - self._drawn < _REFRESH_S:
            return
        self._drawn = time.monotonic()
        ended = sum(trial.ended for trial in self._journal.trials.values())
        of = f" of {self._trials}" if self._trials else ""
        title = f"sweep {self._plan.content['name']}: {ended}{of} trials ended"
        now = {
            trial.number: self._images(trial)
            for trial in self._journal.in_order()
            if trial.status == "running"
        }
        drawn = table.table(
            self._journal.in_order(),
            self._fields,
            title=title,
            metric=self._plan.metric,
            mode=self._plan.mode,
            now=now,
        )
        self._live.update(drawn, refresh=True)

    def started(self, number: int) -> None:
        trial = self._journal.trials[number]
        self._say(f"trial {number}: started  {table.line(trial, self._fields)}")

    def reported(self, number: int) -> None:
        last = self._journal.trials[number].last
        if last is not None:
            self._say(f"trial {number}: {last.images:,} images  {self._plan.metric} {last.value:.4g}")

    def handed(self, number: int) -> None:
        trial = self._journal.trials[number]
        line = table.line(trial, self._fields)
        self._say(
            f"trial {number}: continues from the weights of trial {trial.parents[-1]}  {line}", always=True
        )

    def retried(self, number: int) -> None:
        trial = self._journal.trials[number]
        self._say(f"trial {number}: tried again after: {trial.reason}", always=True)

    def ended(self, number: int) -> None:
        trial = self._journal.trials[number]
        value = "" if trial.last is None else f"  {self._plan.metric} {trial.last.value:.4g}"
        why = f" ({trial.reason})" if trial.reason else ""
        best = best_of(self._journal.in_order(), self._plan.mode)
        so_far = f"  best: trial {best.number}" if best is not None else ""
        self._say(f"trial {number}: {trial.status}{why}{value}{so_far}", always=trial.status == "failed")

    def _say(self, text: str, *, always: bool = False) -> None:
        """Print a line; with a table, only what the table does not show."""
        if self._live is None or always:
            self._console.print(text, soft_wrap=True, markup=False, highlight=False)

    def _images(self, trial: Trial) -> int:
        known = self._plan.folder(trial.number).read_json(PROGRESS)
        return int(known["images"]) if known else 0

"""The events of a sweep, one line of JSON each, written as they happen: all that a resumed sweep needs.

Ray's own state is never read back, so nothing is unpickled and a sweep survives an upgrade of Ray. A killed
driver leaves at most one unfinished line, the last, which is skipped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Status = Literal["waiting", "running", "finished", "stopped", "failed"]
ENDED: tuple[Status, ...] = ("finished", "stopped", "failed")


@dataclass(frozen=True, slots=True)
class Report:
    """The metric of a trial after this many images of its training."""

    images: int
    value: float


@dataclass(slots=True)
class Trial:
    """A trial in the journal. `values` are its present ones, which population based training changes; `asked`
    are those that the search suggested."""

    number: int
    values: dict[str, Any]
    asked: dict[str, Any] = field(default_factory=dict)
    status: Status = "waiting"
    reports: list[Report] = field(default_factory=list)
    images: int = 0
    """Images that it was trained on, including those of weights that it took over."""
    reason: str = ""
    """Why it was stopped or failed."""
    retries: int = 0
    parents: list[int] = field(default_factory=list)
    """Trials whose weights it took over, in order."""

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def last(self) -> Report | None:
        return self.reports[-1] if self.reports else None

    def at(self, images: int) -> float | None:
        """The metric at the first report at or after so many images."""
        return next((report.value for report in self.reports if report.images >= images), None)


class Journal:
    """Appends events to a file, and keeps the trials that they describe."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.trials: dict[int, Trial] = {}
        self.seconds = 0.0
        """Duration of earlier calls and this one."""
        if path.is_file():
            for event in _events(path.read_bytes().split(b"\n")):
                self._apply(event)
            self._end_line()

    def add(self, kind: str, trial: int | None = None, **content: Any) -> None:
        """Write an event, and apply it."""
        event = {"event": kind, **({} if trial is None else {"trial": trial}), **content}
        line = json.dumps(event, default=str)
        with self._path.open("a") as file:
            file.write(line + "\n")
        self._apply(json.loads(line))

    def in_order(self) -> list[Trial]:
        return [self.trials[number] for number in sorted(self.trials)]

    def total_images(self) -> int:
        return sum(trial.images for trial in self.trials.values())

    def _end_line(self) -> None:
        """Ends an unfinished line, so that the next one is whole."""
        content = self._path.read_bytes()
        if content and not content.endswith(b"\n"):
            with self._path.open("ab") as file:
                file.write(b"\n")

    def _apply(self, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if kind == "time":
            self.seconds = float(event["seconds"])
            return
        number = int(event["trial"])
        if kind == "trial":
            known = self.trials.get(number)
            if known is None:
                self.trials[number] = Trial(number, dict(event["values"]), dict(event.get("asked", {})))
            return
        trial = self.trials[number]
        if kind == "start":
            trial.status = "running"
        elif kind == "report":
            trial.reports.append(Report(int(event["images"]), float(event["value"])))
            trial.images = max(trial.images, int(event["images"]))
        elif kind == "handed":
            trial.values = dict(event["values"])
            trial.parents.append(int(event["source"]))
        elif kind == "retry":
            trial.retries += 1
            trial.reason = str(event["reason"])
        elif kind == "end":
            trial.status, trial.reason = event["status"], str(event.get("reason", ""))


def best_of(trials: Iterable[Trial], mode: str) -> Trial | None:
    """The trial with the best last value: among those that ran to their end, or among all if none did.

    Values that are not finite never win.
    """
    sign = 1.0 if mode == "min" else -1.0
    able = [trial for trial in trials if trial.last is not None and math.isfinite(trial.last.value)]
    finished = [trial for trial in able if trial.status == "finished"] or able

    def cost(trial: Trial) -> tuple[float, int]:
        assert trial.last is not None
        return sign * trial.last.value, trial.number

    return min(finished, key=cost, default=None)


def common_images(trials: Iterable[Trial]) -> int | None:
    """Images at which all trials with a report can be compared: the fewest at which one of them ended."""
    return min((trial.reports[-1].images for trial in trials if trial.reports), default=None)


def stopped_share(trials: Sequence[Trial]) -> float:
    """Share of the trials that were stopped early, in [0, 1]."""
    return sum(trial.status == "stopped" for trial in trials) / max(1, len(trials))


def _events(lines: Iterable[bytes]) -> Iterable[Mapping[str, Any]]:
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "event" in event:
            yield event

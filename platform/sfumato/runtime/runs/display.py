"""What the user sees while a run works: a live bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from sfumato.tracking.redact import clean_uri

_PLAIN_INTERVAL_S = 5.0
QUIET_S = 15.0
"""Without a terminal, a stage that lasts says so at least this often."""
WINDOW_S = 60.0
LEAST_S = 5.0
"""Progress over less time says nothing: workers that start together report together."""


class Display:
    """Stages with progress, notes, and the table at the end, on standard error.

    Standard output is left to what a command returns, so that it can be piped. Credentials in URIs are
    hidden.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._live: Progress | None = None
        self._task: TaskID | None = None
        self._stage = self._counted = self._far = ""
        self._prefix = ""
        self._said_at = 0.0
        self._started = 0.0
        self._done = 0
        self._pace = Pace()
        self._active = False
        self._parts: list[Display] = []
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Progress(
                TextColumn("[bold]{task.description:<9}"),
                BarColumn(bar_width=28),
                MofNCompleteColumn(),
                TextColumn("{task.fields[detail]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._live.start()
        else:
            threading.Thread(target=self._stay_audible, daemon=True, name="display").start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        if self._live is not None:
            self._live.stop()

    def _stay_audible(self) -> None:
        while not self._closed.wait(1.0):
            for display in (self, *self._parts):
                display.tick()

    def tick(self) -> None:
        """Say how long the stage has lasted and how far it is, if nothing has been said for a while."""
        now = time.monotonic()
        if self._active and now - self._said_at >= QUIET_S:
            self._said_at = now
            far = f"{self._far}  " if self._done else ""
            lasted = f"{now - self._started:,.0f} s so far"
            self.console.print(f"{self._counted}: {far}{lasted}", soft_wrap=True, markup=False)

    def part(self, name: str) -> Display:
        """A display of one of several concurrent activities: every line begins with its name."""
        part = Display(self.console)
        part._live, part._prefix = self._live, f"{name}: "
        self._parts.append(part)
        return part

    def drop(self) -> None:
        """End the stage silently, because another part reports why."""
        self._active = False
        if self._live is not None and self._task is not None:
            self._live.remove_task(self._task)
            self._task = None

    def stage(self, name: str) -> None:
        """A stage begins."""
        self._stage = self._prefix + name
        self._started = self._said_at = time.monotonic()
        self._count(self._stage)
        if self._live is None:
            self.console.print(f"{self._stage}: started", markup=False)

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Outside a stage: something that is worth a word only if it takes long."""
        self._started = self._said_at = time.monotonic()
        self._count(self._prefix + what)
        try:
            yield
        finally:
            self.drop()

    def phase(self, name: str) -> None:
        """A part of the stage begins, with a count of its own."""
        self.drop()
        self._count(f"{self._stage}, {name}")
        if self._live is None and time.monotonic() - self._said_at >= _PLAIN_INTERVAL_S:
            self._said_at = time.monotonic()
            self.console.print(f"{self._counted}: started", markup=False)

    def _count(self, what: str) -> None:
        """Progress is that of `what` from now on."""
        self._counted, self._done, self._pace, self._active = what, 0, Pace(), True
        if self._live is not None:
            self._task = self._live.add_task(escape(what), total=None, detail="")

    def update(self, done: int, total: int | None, metrics: Mapping[str, float] | None = None) -> None:
        """The stage's progress; `metrics` are a few figures to show next to the bar, instead of the rate."""
        done = done if total is None else min(done, total)  # the last step may pass the total
        self._pace.mark(done, time.monotonic())
        detail = "  ".join(f"{name} {_figure(value)}" for name, value in (metrics or {}).items())
        if metrics is None and (rate := self._pace.rate()) is not None:
            detail = f"{_figure(rate)}/s"
        self._far = f"{done:,} of {total:,}" if total else f"{done:,}"
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=done, total=total, detail=escape(detail))
        elif done != self._done and time.monotonic() - self._said_at >= _PLAIN_INTERVAL_S:
            self._said_at = time.monotonic()
            left = self._time_left(total)
            said = f"{self._counted}: {self._far}  {detail}{left}"
            self.console.print(said, soft_wrap=True, markup=False)
        self._done = done

    def done(self, text: str) -> None:
        """The stage is over; `text` is its result."""
        took = time.monotonic() - self._started
        self.drop()
        self._mark("[green]✓[/]", self._stage, f"{text} ({took:.0f} s)")

    def skipped(self, name: str, text: str) -> None:
        self._mark("[green]✓[/]", self._prefix + name, text)

    def failed(self, name: str, text: str) -> None:
        self._active = False
        self._mark("[red]✗[/]", self._prefix + name, text)

    def note(self, text: str) -> None:
        """A warning or a piece of advice, on its own line."""
        self.console.print(f"[yellow]note:[/] {escape(clean_uri(self._prefix + text))}", soft_wrap=True)

    def table(self, title: str, rows: Mapping[str, str]) -> None:
        # Not the table's own title, which would wrap at the table's width: a run's name is for copying.
        self.console.print(f"[italic]{escape(title)}[/]", soft_wrap=True)
        table = Table(show_header=False)
        for name, value in rows.items():
            table.add_row(escape(name), escape(clean_uri(value)))
        self.console.print(table)

    def line(self, text: str) -> None:
        self.console.print(clean_uri(self._prefix + text), soft_wrap=True, markup=False)

    def _mark(self, mark: str, name: str, text: str) -> None:
        # The text may contain brackets that are not markup, as in `sfumato[deepspeed]`.
        self.console.print(f"{mark} [bold]{escape(name)}[/]: {escape(clean_uri(text))}", soft_wrap=True)

    def _time_left(self, total: int | None) -> str:
        seconds = self._pace.seconds_left(total, time.monotonic()) if total else None
        return "" if seconds is None else f"  {seconds:.0f} s left"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"


class Pace:
    """The remaining time of a stage, from its progress over the last `WINDOW_S` seconds of any monotonic
    clock.

    A mean since the stage's start would spread the start-up (processes, first batches) over all images,
    and make the first estimates ten times too long. Here the clock starts at the first progress, and only
    the last minute counts, so that the estimate follows changes of speed.
    """

    def __init__(self) -> None:
        self._done: int | None = None
        self._marks: deque[tuple[float, int]] = deque()

    def mark(self, done: int, now: float) -> None:
        """Record progress at a time. The first value existed before: it only sets the zero."""
        if self._done is None or done < self._done:
            self._done = done
            self._marks.clear()
            return
        if done == self._done:
            return
        self._done = done
        self._marks.append((now, done))
        while len(self._marks) > 2 and now - self._marks[1][0] >= WINDOW_S:
            self._marks.popleft()

    def seconds_left(self, total: int, now: float) -> float | None:
        """Seconds until `total` is done at the current pace; None before the pace is known."""
        rate = self.rate()
        if rate is None:
            return None
        last_at, last = self._marks[-1]
        return max(0.0, (total - last) / rate - (now - last_at))

    def rate(self) -> float | None:
        """Progress a second over the last minute; None before it is known."""
        if len(self._marks) < 2:
            return None
        (first_at, first), (last_at, last) = self._marks[0], self._marks[-1]
        return (last - first) / (last_at - first_at) if last_at - first_at >= LEAST_S else None

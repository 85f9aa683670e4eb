"""How long the rest of a stage takes, from how fast it has gone lately.

The mean since a stage's start counts the start-up (processes, first batches) as if every image cost its share
of it, which makes the first estimates ten times too long. Here the clock starts at the first progress,
and only the last minute counts, so that the estimate follows a stage that changes its speed.
"""

from __future__ import annotations

from collections import deque

WINDOW_S = 60.0
LEAST_S = 5.0
"""Progress over less time says nothing: workers that start together report together."""


class Pace:
    """Progress over the last `WINDOW_S` seconds of any monotonic clock."""

    def __init__(self) -> None:
        self._done: int | None = None
        self._marks: deque[tuple[float, int]] = deque()

    def mark(self, done: int, now: float) -> None:
        """So much is done at this time. What is told first was there before: it only sets the zero."""
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
        """Seconds until `total` is done at this pace; None as long as there is none."""
        if len(self._marks) < 2:
            return None
        (first_at, first), (last_at, last) = self._marks[0], self._marks[-1]
        if last_at - first_at < LEAST_S:
            return None
        spent = now - last_at
        return max(0.0, (total - last) * (last_at - first_at) / (last - first) - spent)

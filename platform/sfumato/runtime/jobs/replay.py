"""Lines of a stream that is opened again and again, each shown once.

kubectl's stream of a pod begins at its first line each time. A submitting pod that replaces a lost one
repeats the job's output, after some lines of its own and without some of the other's. So lines are compared
with those shown, in order, and not counted.
"""

from __future__ import annotations

from collections.abc import Callable


class Replay:
    """Passes on the lines that are new; `show` takes whole lines."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._shown: list[str] = []
        self._at = 0
        self._attempt = ""

    @property
    def empty(self) -> bool:
        """Whether the attempt has said nothing yet."""
        return not self._shown

    def open(self, attempt: str) -> None:
        """A stream begins; one of another attempt repeats nothing."""
        if attempt != self._attempt:
            self._attempt = attempt
            self._shown.clear()
        self._at = 0

    def __call__(self, line: str) -> None:
        try:
            self._at = self._shown.index(line, self._at) + 1
        except ValueError:
            self._shown.insert(self._at, line)
            self._at += 1
            self._show(line)

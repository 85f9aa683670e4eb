"""The samples that a run could not use and skipped: a list in its folder and among its artifacts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sfumato.data.format.faults import Fault
from sfumato.runtime.runs.run_folder import RunFolder
from sfumato.tracking.run import Tracker

FILE = "skipped.json"


class SkippedSamples:
    """What any rank skipped since the run began, in earlier attempts too. Rank 0 lists it."""

    def __init__(self, folder: RunFolder, tracker: Tracker | None) -> None:
        self._folder, self._tracker = folder, tracker
        self._known: set[str] = set(folder.read_json(FILE) or ())

    def add(self, faults_of_ranks: Iterable[Sequence[Fault]]) -> None:
        """Write the list anew where it has become longer."""
        found = {str(fault) for faults in faults_of_ranks for fault in faults} - self._known
        if not found or self._tracker is None:
            return
        self._known |= found
        self._folder.write_json(FILE, sorted(self._known))
        self._tracker.artifact(self._folder.path / FILE)

    @property
    def text(self) -> str:
        """One line for people; empty where nothing was skipped."""
        count = len(self._known)
        return f"{count} samples could not be used and were skipped; {FILE} lists them" if count else ""

"""The tracker of a run that is not recorded (`tracking.enabled: false`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sfumato.tracking.run import Status, Tracker, TrackerHandle


class NoTracker(Tracker):
    """Accepts a tracker's calls and records nothing; touches neither the disk nor MLflow."""

    def __init__(self, handle: TrackerHandle) -> None:
        self.handle = handle

    def metrics(self, values: Mapping[str, float], *, step: int) -> None: ...

    def image(self, key: str, png: bytes, *, step: int) -> None: ...

    def artifact(self, path: Path, to: str | None = None) -> None: ...

    def tags(self, values: Mapping[str, object]) -> None: ...

    def sample_system(self) -> None: ...

    def finish(self, status: Status = "FINISHED", *, timeout: float = 30.0) -> int:
        return 0

    def close(self, timeout: float = 30.0) -> int:
        return 0

    def send_left(self) -> None: ...

"""The curves of a run: every point of its metrics, for reports that need no browser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sfumato.tracking.config import TrackingSettings
from sfumato.tracking.store import TrackingStore


@dataclass(frozen=True, slots=True)
class Point:
    """A value at a step (images), and when it was measured (unix seconds)."""

    step: int
    seconds: float
    value: float


def metric_history(
    run_id: str, settings: TrackingSettings, *, root: Path, wanted: Callable[[str], bool]
) -> dict[str, list[Point]]:
    """The points of every metric whose name is `wanted`, in the order of steps.

    Raises SfumatoError where the store does not answer.
    """
    store = TrackingStore.of(settings, root)
    if store.database is not None and not store.database.exists():
        return {}
    client = store.client()
    names = [name for name in store.reach(lambda: client.get_run(run_id)).data.metrics if wanted(name)]
    found = {}
    for name in sorted(names):
        points = store.reach(lambda name=name: client.get_metric_history(run_id, name))  # type: ignore[misc]
        found[name] = sorted(
            (Point(p.step, p.timestamp / 1000, p.value) for p in points), key=lambda point: point.step
        )
    return found

"""The page on which an experiment's runs are compared: an artifact of a run of its own in that experiment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sfumato.tracking.config import TrackingSettings
from sfumato.tracking.runs import RunInfo, list_runs
from sfumato.tracking.store import TrackingStore

KIND = "comparison"
PAGE = "comparison.html"


def comparable_runs(
    settings: TrackingSettings, *, root: Path, tag: str, value: str, limit: int
) -> list[RunInfo]:
    """The experiment's runs whose tag has that value, newest first."""
    found = list_runs(settings, root=root, experiment=settings.experiment, limit=1000)
    return [run for run in found if run.tags.get(tag) == value][:limit]


def put_page(
    settings: TrackingSettings, page: str, names: Sequence[str], *, root: Path, experiment_id: str
) -> str:
    """Replace the page of the experiment's comparison; the id of the run that has it.

    Raises SfumatoError if the store does not answer.
    """
    store = TrackingStore.of(settings, root)
    client = store.client()
    known = store.reach(
        lambda: client.search_runs([experiment_id], f"tags.`sfumato.kind` = '{KIND}'", max_results=1)
    )
    if known:
        run_id = known[0].info.run_id
    else:
        tags = {"sfumato.kind": KIND}
        run_id = store.reach(lambda: client.create_run(experiment_id, run_name=KIND, tags=tags)).info.run_id
    store.reach(lambda: client.log_text(run_id, page, PAGE))
    store.reach(lambda: client.set_tag(run_id, "sfumato.runs", ", ".join(names)))
    store.reach(lambda: client.set_terminated(run_id, "FINISHED"))
    return str(run_id)

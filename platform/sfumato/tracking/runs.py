"""Finds runs by id or by name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.errors import ConfigError
from sfumato.tracking.config import TrackingSettings
from sfumato.tracking.store import TrackingStore

if TYPE_CHECKING:
    from mlflow import MlflowClient

_ID = re.compile(r"[0-9a-f]{32}")
MOST_LISTED = 1000


@dataclass(frozen=True, slots=True)
class RunInfo:
    """A run as the store knows it. `said` describes the run to the user."""

    run_id: str
    name: str
    experiment_id: str
    status: str
    started: datetime
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    said: str


def find_run(run: str, settings: TrackingSettings, *, root: Path) -> RunInfo:
    """The run of that MLflow id, or the newest run of that name in any experiment.

    Raises ConfigError with the nearest names where there is none.
    """
    store = TrackingStore.of(settings, root)
    client = _existing(store, run)
    if _ID.fullmatch(run):
        found = _by_id(store, client, run)
        if found is not None:
            return found
    named = [] if set(run) & set("'\"`") else _search(store, client, f"attributes.run_name = '{run}'")
    if named:
        newest = named[0]
        others = len(named) - 1
        more = f", the newest of {len(named)} runs of that name" if others else ""
        return _info(newest, f"run {newest.info.run_id} '{run}'{more}")
    raise ConfigError(_unknown(run, store, [item.info.run_name or "" for item in _search(store, client, "")]))


def list_runs(
    settings: TrackingSettings, *, root: Path, experiment: str | None = None, limit: int = 100
) -> list[RunInfo]:
    """The runs of an experiment, or of all, newest first; none if there is no store yet."""
    store = TrackingStore.of(settings, root)
    if store.database is not None and not store.database.exists():
        return []
    found = _search(store, store.client(), "", experiment=experiment, limit=limit)
    return [_info(item, f"run {item.info.run_id} '{item.info.run_name}'") for item in found]


def _existing(store: TrackingStore, run: str) -> MlflowClient:
    """A client of an existing store; looking for a run must not create an empty one."""
    if store.database is not None and not store.database.exists():
        raise ConfigError(
            f"no run '{run}': there is no MLflow store at {store.database} yet; "
            "start a run first, or call this from the folder in which it was started"
        )
    return store.client()


def _by_id(store: TrackingStore, client: MlflowClient, run_id: str) -> RunInfo | None:
    from mlflow.exceptions import MlflowException

    def get() -> Any:
        try:
            return client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    found = store.reach(get)
    return None if found is None else _info(found, f"run {run_id} '{found.info.run_name}'")


def _search(
    store: TrackingStore,
    client: MlflowClient,
    where: str,
    *,
    experiment: str | None = None,
    limit: int = MOST_LISTED,
) -> list[Any]:
    """Runs of all experiments, or of one, newest first."""
    experiments = store.reach(client.search_experiments)
    ids = [item.experiment_id for item in experiments if experiment in (None, item.name)]
    if not ids:
        return []
    return list(
        store.reach(
            lambda: client.search_runs(ids, where, max_results=limit, order_by=["attributes.start_time DESC"])
        )
    )


def _info(run: Any, said: str) -> RunInfo:
    return RunInfo(
        run_id=run.info.run_id,
        name=run.info.run_name or "",
        experiment_id=run.info.experiment_id,
        status=run.info.status,
        started=datetime.fromtimestamp(run.info.start_time / 1000, UTC),
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        tags=dict(run.data.tags),
        said=said,
    )


def _unknown(run: str, store: TrackingStore, names: list[str]) -> str:
    known = list(dict.fromkeys(name for name in names if name))
    near = difflib.get_close_matches(run, known, n=3) or known[:3]
    if not near:
        return f"no run '{run}' in {store.shown}, which has no runs yet"
    quoted = ", ".join(f"'{name}'" for name in near)
    return f"no run '{run}' in {store.shown}: did you mean {quoted}?"

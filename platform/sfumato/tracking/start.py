"""Opens a run in the store and records its settings before it starts."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.errors import ConfigError
from sfumato.tracking.config import TrackingSettings
from sfumato.tracking.environment import environment_json, git_tags, lock
from sfumato.tracking.redact import clean, clean_uri, clean_yaml, flat_params
from sfumato.tracking.store import TrackingStore

if TYPE_CHECKING:
    from mlflow import MlflowClient

PARAMS_A_REQUEST = 100


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """The data of a run: `digest` is its manifest's, `spec` further facts to display."""

    name: str
    digest: str
    source: str
    spec: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """A run's description before it starts."""

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    dataset: DatasetInfo | None = None
    recipe_yaml: str | None = None
    parent: str | None = None


def open_run(
    store: TrackingStore, settings: TrackingSettings, root: Path, beginning: Beginning, run_id: str | None
) -> tuple[str, str, float]:
    """(experiment id, run id, start in unix seconds) of a new run, or of `run_id`, set running again."""
    client = store.create()
    if run_id is not None:
        return _reopen(store, client, run_id)
    experiment = store.experiment(client, settings.experiment)
    tags = {**clean(settings.tags), **clean(beginning.tags), **git_tags(root)}
    if beginning.parent:
        tags["mlflow.parentRunId"] = beginning.parent
    run = store.reach(lambda: client.create_run(experiment, tags=tags, run_name=beginning.name))
    made: str = run.info.run_id
    _log_params(store, client, made, flat_params(beginning.params))
    if beginning.dataset is not None:
        _log_dataset(store, client, made, beginning.dataset)
    _log_files(store, client, made, beginning.recipe_yaml)
    return experiment, made, run.info.start_time / 1000


def _reopen(store: TrackingStore, client: MlflowClient, run_id: str) -> tuple[str, str, float]:
    from mlflow.exceptions import MlflowException

    try:
        info = client.get_run(run_id).info
    except MlflowException as error:
        raise ConfigError(_gone(run_id, store)) from error
    if info.lifecycle_stage == "deleted":
        raise ConfigError(_gone(run_id, store))
    store.reach(lambda: client.update_run(run_id, status="RUNNING"))
    return info.experiment_id, run_id, info.start_time / 1000


def _gone(run_id: str, store: TrackingStore) -> str:
    return (
        f"run {run_id} is not in {store.shown}: it may have been deleted there, or tracking.uri is not "
        "the one that it was started with; --new-record keeps the run and its checkpoints and records it anew"
    )


def _log_params(store: TrackingStore, client: MlflowClient, run_id: str, params: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    all_params = [Param(key, value) for key, value in params.items()]
    for start in range(0, len(all_params), PARAMS_A_REQUEST):
        some = all_params[start : start + PARAMS_A_REQUEST]
        store.reach(lambda some=some: client.log_batch(run_id, params=some, synchronous=True))  # type: ignore[misc]


def _log_dataset(store: TrackingStore, client: MlflowClient, run_id: str, info: DatasetInfo) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = clean_uri(info.source)
    scheme = source.split("://", 1)[0] if "://" in source else "local"
    dataset = Dataset(
        name=info.name,
        digest=info.digest[:36],
        source_type=scheme,
        source=json.dumps({"uri": source}),
        profile=json.dumps(dict(info.spec), default=str),
    )
    use = DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])
    store.reach(lambda: client.log_inputs(run_id, datasets=[use]))


def _log_files(store: TrackingStore, client: MlflowClient, run_id: str, recipe_yaml: str | None) -> None:
    with tempfile.TemporaryDirectory(prefix="sfumato-") as folder:
        Path(folder, "environment.json").write_text(environment_json())
        Path(folder, "requirements.txt").write_text(lock())
        if recipe_yaml is not None:
            Path(folder, "recipe.yaml").write_text(clean_yaml(recipe_yaml))
        store.reach(lambda: client.log_artifacts(run_id, folder))

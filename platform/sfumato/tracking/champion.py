"""Aliases in the model registry: which version of a model is champion, and its figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfumato.errors import ConfigError
from sfumato.tracking.config import TrackingSettings
from sfumato.tracking.store import TrackingStore

CHAMPION, CHALLENGER = "champion", "challenger"
COMPARABLE = "sfumato.evaluation"
"""Tag of a run: equal for evaluations whose figures compare."""


@dataclass(frozen=True, slots=True)
class Champion:
    """A version of a registered model, with the newest figures of its run."""

    version: str
    run_id: str
    digest: str
    """Of its model folder."""
    comparable: str
    metrics: Mapping[str, float]

    def interval(self, metric: str) -> tuple[float, float] | None:
        """(low, high) of a figure; None where none was recorded."""
        low, high = (self.metrics.get(f"eval/{metric}/{end}") for end in ("low", "high"))
        return None if low is None or high is None else (low, high)


def champion_of(
    settings: TrackingSettings, name: str, *, root: Path, alias: str = CHAMPION
) -> Champion | None:
    """The version that has the alias, or None. Raises SfumatoError if the store does not answer."""
    store = TrackingStore.of(settings, root)
    if store.database is not None and not store.database.exists():
        return None
    client = store.client()
    version = store.reach(lambda: _or_none(lambda: client.get_model_version_by_alias(name, alias)))
    if version is None:
        return None
    run = store.reach(lambda: client.get_run(version.run_id))
    return Champion(
        version=str(version.version),
        run_id=version.run_id,
        digest=str(version.tags.get("sfumato.digest", "")),
        comparable=str(run.data.tags.get(COMPARABLE, "")),
        metrics=dict(run.data.metrics),
    )


def set_alias(settings: TrackingSettings, name: str, alias: str, version: str, *, root: Path) -> str | None:
    """Give a version an alias, which any other version then loses; returns that other version or None.

    A new champion stops being challenger. Raises ConfigError if the version is missing.
    """
    store = TrackingStore.of(settings, root)
    client = store.client()
    if not has_version(settings, name, version, root=root):
        raise ConfigError(f"there is no version {version} of model {name!r} in {store.shown}")
    before = champion_of(settings, name, root=root, alias=alias)
    store.reach(lambda: client.set_registered_model_alias(name, alias, version))
    other = champion_of(settings, name, root=root, alias=CHALLENGER)
    if alias == CHAMPION and other is not None and other.version == version:
        store.reach(lambda: client.delete_registered_model_alias(name, CHALLENGER))
    return None if before is None else before.version


def has_version(settings: TrackingSettings, name: str, version: str, *, root: Path) -> bool:
    """Whether the registry has this version of a model."""
    store = TrackingStore.of(settings, root)
    if store.database is not None and not store.database.exists():
        return False
    client = store.client()
    return store.reach(lambda: _or_none(lambda: client.get_model_version(name, version))) is not None


def _or_none(call: Any) -> Any:
    """The result of a call; None for a model, version or alias that does not exist."""
    from mlflow.exceptions import MlflowException

    try:
        return call()
    except MlflowException as error:
        # An alias that a model does not have is `invalid`; a model that is not there `does not exist`.
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise

"""Where runs are kept: an embedded MLflow store in the project's folder, or a server.

Addresses are absolute from here on, because a run's workers have different current folders.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sfumato.errors import ConfigError, SfumatoError
from sfumato.tracking.config import TrackingSettings
from sfumato.tracking.redact import clean_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

_Result = TypeVar("_Result")
# Opens the UI's pages for training, not those for language models.
KIND = {"mlflow.experimentKind": "custom_model_development"}
_SQLITE = re.compile(r"sqlite(?:\+\w+)?:///(?P<path>[^?]+)")


@dataclass(frozen=True, slots=True)
class TrackingStore:
    """An MLflow store; `artifacts` is where an embedded store keeps files (a server knows by itself)."""

    uri: str
    artifacts: str | None

    @classmethod
    def of(cls, settings: TrackingSettings, root: Path) -> TrackingStore:
        """The store that the settings name; `root` is the project's folder."""
        root = root.resolve()
        if settings.uri is None:
            return cls(f"sqlite:///{root / 'mlflow.db'}", (root / "mlartifacts").as_uri())
        found = _SQLITE.fullmatch(settings.uri.split("?", 1)[0])
        if found is None:
            return cls(settings.uri, None)
        database = (root / found["path"]).resolve()
        return cls(f"sqlite:///{database}", (database.parent / "mlartifacts").as_uri())

    @property
    def database(self) -> Path | None:
        """The file of an embedded store; None for a server's."""
        found = _SQLITE.fullmatch(self.uri)
        return Path(found["path"]) if found else None

    @property
    def shown(self) -> str:
        """The address as it may be shown."""
        return clean_uri(self.uri)

    def client(self) -> MlflowClient:
        """A client of this store; it leaves MLflow's global address alone."""
        # Our own sender waits and tries again; MLflow's default blocks for many minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        # It prints the address of every run that ends, among a command's results.
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        from mlflow import MlflowClient
        from sqlalchemy.exc import DatabaseError

        for noisy in ("alembic", "mlflow"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        try:
            with self._alone():
                return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        except DatabaseError as error:
            raise ConfigError(self._unusable(str(error.orig))) from error

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Locks the folder of an embedded store while the first client creates its tables. MLflow would
        let two processes create them at once, which ends both and leaves half a database."""
        if self.database is None:
            yield
            return
        folder = os.open(self.database.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def create(self) -> MlflowClient:
        """A client of a store, created if necessary, or one line about why that failed."""
        if self.database is not None:
            try:
                self.database.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(
                    f"tracking: cannot make {self.database.parent} ({error.strerror}): "
                    "choose a folder that you may write to, or set tracking.uri"
                ) from error
            self._check_writable(self.database)
        client = self.client()
        self.reach(client.search_experiments)
        return client

    def _check_writable(self, database: Path) -> None:
        """SQLite writes its journal beside the file. Raises ConfigError."""
        for place in (database.parent, database):
            if place.exists() and not os.access(place, os.W_OK, effective_ids=True):
                raise ConfigError(
                    f"tracking: {place} is read-only for this user: change its rights, set tracking.uri to "
                    "another store, or do without with tracking.enabled=false"
                )

    def reach(self, call: Callable[[], _Result], *, seconds: float = 15.0) -> _Result:
        """The call's result, with retries for a while; an unreachable store gives one clear line."""
        from mlflow.exceptions import MlflowException

        end = time.monotonic() + seconds
        while True:
            try:
                return call()
            except MlflowException as error:
                if is_permanent(error) or time.monotonic() > end:
                    reason = clean_uri(_reason(str(error)))[:200]
                    if self.database is not None:
                        raise SfumatoError(self._unusable(reason)) from error
                    raise SfumatoError(
                        f"tracking: {self.shown} does not answer ({reason}): start the server, "
                        "or set tracking.uri to null for the embedded store"
                    ) from error
            time.sleep(1.0)

    def _unusable(self, reason: str) -> str:
        """One line about an embedded store that is damaged, locked, or not ours to write."""
        if self.database is None:
            return f"tracking: the database of {self.shown} cannot be used ({reason})"
        if "not a database" in reason or "malformed" in reason or "Can't locate revision" in reason:
            return (
                f"tracking: {self.database} is damaged ({reason}): put a copy in its place, or move it away "
                "and add --new-record; runs and their checkpoints are elsewhere"
            )
        if "locked" in reason:
            return (
                f"tracking: {self.database} is locked by another process ({reason}): end that process "
                f"(`fuser {self.database.name}` names it), or record on a server with tracking.uri"
            )
        return (
            f"tracking: {self.database} cannot be used ({reason}): is it yours, and has its disk room? "
            "tracking.enabled=false does without"
        )

    def experiment(self, client: MlflowClient, name: str) -> str:
        """The id of the experiment of that name, created if there is none."""
        from mlflow.exceptions import MlflowException

        found = self.reach(lambda: client.get_experiment_by_name(name))
        if found is None:
            try:
                return client.create_experiment(name, artifact_location=self.artifacts, tags=KIND)
            except MlflowException:
                # Another run may have created it in between.
                found = client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            raise ConfigError(
                f"tracking.experiment '{name}' was deleted in {self.shown}: "
                f"choose another name, or restore it (mlflow experiments restore -x {found.experiment_id})"
            )
        return str(found.experiment_id)


def _reason(text: str) -> str:
    """What a database said, without what SQLAlchemy and MLflow put around it; else the first line."""
    said = re.search(r"\(\w+\.\w*(?:Error|Exception)\) (.+)", text)
    return said[1] if said else text.splitlines()[0]


def is_permanent(error: Exception) -> bool:
    """Whether the store understood a request and will never accept it."""
    return getattr(error, "error_code", "") in {
        "BAD_REQUEST",
        "INVALID_PARAMETER_VALUE",
        "RESOURCE_DOES_NOT_EXIST",
    }

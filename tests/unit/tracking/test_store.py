"""An embedded store that cannot be used is one line about its file, and no advice about servers."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from without_rights import as_ordinary_user

from sfumato.errors import ConfigError, SfumatoError
from sfumato.tracking.config import TrackingSettings
from sfumato.tracking.store import TrackingStore, _reason


def store(folder: Path) -> TrackingStore:
    return TrackingStore.of(TrackingSettings(), folder)


def test_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(bytes(range(256)) * 64)
    with pytest.raises(ConfigError, match=rf"^tracking: {tmp_path}/mlflow.db is damaged .*--new-record"):
        store(tmp_path).create()


def test_a_file_that_another_process_keeps_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.exceptions import MlflowException

    made = store(tmp_path)
    client = made.create()
    holder = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")

    def asks() -> None:  # as MLflow says it, without sqlite's patience
        try:
            sqlite3.connect(tmp_path / "mlflow.db", timeout=0).execute("SELECT * FROM runs")
        except sqlite3.OperationalError as error:
            raise MlflowException(f"(sqlite3.OperationalError) {error}") from error

    with pytest.raises(SfumatoError, match=r"mlflow.db is locked by another process .*`fuser mlflow.db`"):
        made.reach(asks, seconds=0)
    holder.close()
    assert made.reach(client.search_experiments)


@pytest.mark.parametrize("reason", ["attempt to write a readonly database", "disk I/O error"])
def test_other_reasons(tmp_path: Path, reason: str) -> None:
    line = store(tmp_path)._unusable(reason)
    assert f"mlflow.db cannot be used ({reason}): is it yours, and has its disk room?" in line


def test_a_file_that_may_only_be_read(tmp_path: Path) -> None:
    store(tmp_path).create()
    (tmp_path / "mlflow.db").chmod(0o444)
    with as_ordinary_user():
        with pytest.raises(ConfigError, match=rf"^tracking: {tmp_path}/mlflow.db is read-only for this user"):
            store(tmp_path).create()
        assert store(tmp_path).client().search_experiments(), "it can still be looked at"


def test_of_what_a_database_says_its_own_words_are_told() -> None:
    wrapped = (
        "(raised as a result of Query-invoked autoflush)\n(sqlite3.OperationalError) disk I/O error\n[SQL]"
    )
    assert _reason(wrapped) == "disk I/O error"
    assert _reason("API request failed\nbecause") == "API request failed"


def test_addresses_of_runs_are_not_printed_among_results(tmp_path: Path) -> None:
    from mlflow.environment_variables import MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT

    store(tmp_path).client()
    assert MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT.get()

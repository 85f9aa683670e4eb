"""A server that others can reach asks them who they are, or is not started."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from sfumato.errors import ConfigError
from sfumato.tracking.config import TrackingSettings
from sfumato.tracking.exposure import Accounts, check_host, is_loopback
from sfumato.tracking.store import TrackingStore
from sfumato.tracking.ui import command, serve, server_environment, started


def accounts_file(folder: Path, password: str) -> Path:
    file = folder / "accounts.ini"
    file.write_text(
        f"[mlflow]\nadmin_username = admin\nadmin_password = {password}\ndefault_permission = READ\n"
        f"database_uri = sqlite:///{folder}/accounts.db\nauthorization_function = "
        "mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    file.chmod(0o600)
    return file


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)
    check_host(host, None, port=5000)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.com", "localhost.example.com", ""])  # noqa: S104
def test_what_others_reach_is_refused_without_accounts(host: str, tmp_path: Path) -> None:
    assert not is_loopback(host)
    with pytest.raises(ConfigError, match=r"would let everybody .* --accounts FILE"):
        serve(TrackingSettings(), root=tmp_path, host=host)


def test_accounts_that_would_keep_nobody_out(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        Accounts.load(tmp_path / "none.ini")
    (tmp_path / "empty.ini").write_text("password = 3\n")
    with pytest.raises(ConfigError, match="expected an ini file"):
        Accounts.load(tmp_path / "empty.ini")
    for weak in ("short", "password1234"):
        with pytest.raises(ConfigError, match="12 characters or more") as refused:
            Accounts.load(accounts_file(tmp_path, weak))
        assert weak not in str(refused.value)
    file = accounts_file(tmp_path, "long-enough-and-new")
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        Accounts.load(file)


def test_no_password_is_in_the_command_line(tmp_path: Path) -> None:
    pytest.importorskip("flask_wtf", reason="MLflow's accounts are not installed (extra `cluster`)")
    known = Accounts.load(accounts_file(tmp_path, "long-enough-and-new"))
    words = command(TrackingStore.of(TrackingSettings(), tmp_path), 5000, "0.0.0.0", known)  # noqa: S104
    assert words[words.index("--app-name") + 1] == "basic-auth"
    environment = server_environment(known)
    assert environment["MLFLOW_AUTH_CONFIG_PATH"] == str(tmp_path / "accounts.ini")
    assert not any("long-enough" in word for word in (*words, *environment.values()))
    assert not any(environment["MLFLOW_FLASK_SERVER_SECRET_KEY"] in word for word in words)


@pytest.mark.slow
def test_a_server_with_accounts_turns_strangers_away(tmp_path: Path) -> None:
    pytest.importorskip("flask_wtf", reason="MLflow's accounts are not installed (extra `cluster`)")
    known = Accounts.load(accounts_file(tmp_path, "long-enough-and-new"))
    store = TrackingStore.of(TrackingSettings(), tmp_path)
    subprocess.run(
        [sys.executable, "-m", "mlflow", "db", "upgrade", store.uri], check=True, capture_output=True
    )
    with started(store, 15_871, "0.0.0.0", known) as ui:  # noqa: S104
        search = f"{ui.url}/api/2.0/mlflow/experiments/search?max_results=3"
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(search, timeout=60)  # noqa: S310 - loopback
        assert refused.value.code == 401
        keys = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        keys.add_password(None, ui.url, "admin", "long-enough-and-new")
        opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(keys))
        assert opener.open(search, timeout=60).status == 200

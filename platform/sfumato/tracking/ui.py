"""Opens MLflow's user interface on an embedded store, for this machine only or for users with an account."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sfumato.errors import ConfigError, SfumatoError
from sfumato.tracking.config import TrackingSettings
from sfumato.tracking.exposure import Accounts, check_host
from sfumato.tracking.store import TrackingStore

HOST = "127.0.0.1"
READY_SECONDS = 120.0


def serve(
    settings: TrackingSettings,
    *,
    root: Path,
    port: int = 5000,
    host: str = HOST,
    accounts: Accounts | None = None,
) -> None:
    """Serve the UI until ctrl-C, and print where it is. A tracking server has its own: print that.

    Raises ConfigError where there are no runs yet, the port is taken, or others could reach the server at
    `host` without an account.
    """
    check_host(host, accounts, port=port)
    store = TrackingStore.of(settings, root)
    if store.uri.startswith("http"):
        print(f"The tracking server has its own UI: {store.shown}")
        return
    # However this process is ended, the server must not outlive it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), started(store, port, host, accounts) as ui:
        print(f"MLflow UI: {ui.url}  (ctrl-C ends it)", flush=True)
        ui.server.wait()
        raise SfumatoError(_ended(ui.server, ui.words))


@dataclass(frozen=True, slots=True)
class Running:
    """A UI that answers at `url`."""

    url: str
    server: subprocess.Popen[bytes]
    words: IO[bytes]
    """The server's output, shown only if it fails."""


@contextlib.contextmanager
def started(
    store: TrackingStore, port: int, host: str = HOST, accounts: Accounts | None = None
) -> Iterator[Running]:
    """The UI while its server runs; the server and its workers end with the block."""
    if store.database is not None and not store.database.exists():
        raise ConfigError(
            f"there is no MLflow store at {store.database} yet: start a run first, "
            "or call this from the folder in which it was started"
        )
    check_host(host, accounts, port=port)
    check_port(port, host)
    # Its own process group: Ctrl-C reaches only us, and we end the server with its workers.
    with tempfile.TemporaryFile() as words:
        server = subprocess.Popen(
            command(store, port, host, accounts),
            env=server_environment(accounts),
            stdout=words,
            stderr=words,
            start_new_session=True,
        )
        try:
            running = Running(f"http://{_reached_at(host)}:{port}", server, words)
            _wait(running)
            yield running
        finally:
            _end(server)


def command(store: TrackingStore, port: int, host: str = HOST, accounts: Accounts | None = None) -> list[str]:
    """The server's command line: one worker, the minimum. It holds no secret."""
    files = ["--default-artifact-root", store.artifacts] if store.artifacts else []
    return [
        *(sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store.uri, *files),
        *("--host", host, "--port", str(port), "--workers", "1", "--uvicorn-opts", "--log-level warning"),
        *(accounts.arguments() if accounts else []),
    ]


def server_environment(accounts: Accounts | None = None) -> dict[str, str]:
    """Our environment without the executor of MLflow's jobs, a 240 MB process that is not needed here."""
    return {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONWARNINGS": "ignore",
        **(accounts.environment() if accounts else {}),
    }


def _reached_at(host: str) -> str:
    """The address under which this machine reaches a server that listens at `host`."""
    return HOST if host in ("0.0.0.0", "::") else host  # noqa: S104 - looked at, not listened on


def check_port(port: int, host: str = HOST) -> None:
    """Raises ConfigError if the port is in use."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the server does it: a port in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"port {port} cannot be used ({error.strerror}): choose another one, --port {port + 1}"
            ) from error


def _wait(ui: Running) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if ui.server.poll() is not None:
            raise SfumatoError(_ended(ui.server, ui.words))
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{ui.url}/health", timeout=2).close()  # noqa: S310 - our own address
            return
        time.sleep(0.3)
    raise SfumatoError(f"the MLflow server did not answer at {ui.url} within {READY_SECONDS:.0f} s")


def _ended(server: subprocess.Popen[bytes], words: IO[bytes]) -> str:
    words.seek(0)
    last = (words.read().decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
    return f"the MLflow server ended by itself with status {server.returncode}: {last[:300]}"


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server's process group, gently first."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, sign)
        try:
            server.wait(timeout=8)
            return
        except subprocess.TimeoutExpired:
            continue

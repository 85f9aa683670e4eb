"""Restricts who may reach a server that we start: only this machine, unless visitors must log in.

Anybody who can reach an open MLflow server can read, change and delete runs, and register models, which
others load as code.
"""

from __future__ import annotations

import configparser
import importlib.util
import ipaddress
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from sfumato.errors import ConfigError, with_extra

SHORTEST_PASSWORD = 12
# Those of MLflow's documentation, which are tried first.
_KNOWN_PASSWORDS = {"password1234", "password12345"}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach this address; a name other than localhost may be anything."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class Accounts:
    """The accounts of an MLflow server: an ini file as MLflow's basic authentication reads it."""

    file: Path

    @classmethod
    def load(cls, file: Path) -> Accounts:
        """Raises ConfigError if the file would keep nobody out, or if MLflow's accounts are missing."""
        ini = configparser.ConfigParser(interpolation=None)
        try:
            ini.read_string(file.read_text())
            password = ini["mlflow"]["admin_password"]
        except OSError as error:
            raise ConfigError(f"--accounts {file}: {error.strerror}") from error
        except (configparser.Error, KeyError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"--accounts {file}: expected an ini file with a section [mlflow] and admin_username, "
                "admin_password, database_uri, default_permission in it"
            ) from error
        if file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
            raise ConfigError(f"--accounts {file}: others can read the password in it: chmod 600")
        if len(password) < SHORTEST_PASSWORD or password in _KNOWN_PASSWORDS:
            raise ConfigError(
                f"--accounts {file}: admin_password needs {SHORTEST_PASSWORD} characters or more, other than "
                "those of MLflow's documentation"
            )
        if importlib.util.find_spec("flask_wtf") is None:
            raise ConfigError(f"--accounts needs MLflow's accounts: {with_extra('cluster')}")
        return cls(file.resolve())

    def arguments(self) -> list[str]:
        return ["--app-name", "basic-auth"]

    def environment(self) -> dict[str, str]:
        """The key signs the server's cookies and lives as long as the server."""
        return {
            "MLFLOW_AUTH_CONFIG_PATH": str(self.file),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
        }


def check_host(host: str, accounts: Accounts | None, *, port: int) -> None:
    """Raises ConfigError if others could reach a server that has no accounts."""
    if accounts is None and not is_loopback(host):
        raise ConfigError(
            f"--host {host} would let everybody who can reach this machine read and delete the runs: give "
            f"--accounts FILE, or stay on 127.0.0.1 and come by a tunnel (ssh -L {port}:127.0.0.1:{port})"
        )

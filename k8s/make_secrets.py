#!/usr/bin/env python3
"""Writes the Secrets that the manifests name, with fresh passwords, to standard output.

    python k8s/make_secrets.py --local | kubectl create -f -      # everything in the cluster (overlays/local)
    python k8s/make_secrets.py         | kubectl create -f -      # a cloud's database and identities

`create` and not `apply`: a second call fails instead of changing the passwords of a database that has the
first ones. Nothing is read from arguments that is secret. Without --local the environment has to have
SFUMATO_DATABASE_URI (postgresql://user:password@host:5432/mlflow), and may have AWS_ACCESS_KEY_ID with
AWS_SECRET_ACCESS_KEY, where pods have no identity of the cloud's that may use the bucket.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

NAMESPACE = "sfumato"
USER = "sfumato"

_ACCOUNTS = Path(__file__).parents[1] / "infra" / "mlflow" / "basic_auth.ini"


def local() -> dict[str, dict[str, str]]:
    """By name, the Secrets of a cluster that has its own database and object store."""
    password = secrets.token_urlsafe(24)
    keys = {
        "AWS_ACCESS_KEY_ID": secrets.token_hex(10).upper(),
        "AWS_SECRET_ACCESS_KEY": secrets.token_urlsafe(30),
    }
    address = f"postgresql://mlflow:{password}@postgresql:5432/mlflow"
    return {**_everywhere(address), "postgresql": {"password": password}, "object-store": keys}


def cloud(environment: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """By name, the Secrets of a cluster whose database and bucket are a cloud's.

    Raises ValueError where the environment lacks the database's address or has half a key.
    """
    address = environment.get("SFUMATO_DATABASE_URI", "")
    parts = urlsplit(address)
    if parts.scheme != "postgresql" or not parts.hostname or not parts.password or len(parts.path) < 2:
        raise ValueError(
            "SFUMATO_DATABASE_URI has to be set, of the form postgresql://user:password@host:5432/mlflow "
            "(or --local for a database in the cluster)"
        )
    found = _everywhere(address)
    keys = {name: environment.get(name, "") for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    if all(keys.values()):
        found["object-store"] = keys
    elif any(keys.values()):
        raise ValueError(
            "of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY one is set alone: set both, or none where pods "
            "have an identity of the cloud's"
        )
    return found


def manifest(contents: Mapping[str, Mapping[str, str]]) -> str:
    """A list of Secrets as JSON, which kubectl reads as YAML."""
    items = [
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": name,
                "namespace": NAMESPACE,
                "labels": {"app.kubernetes.io/part-of": "sfumato"},
            },
            "type": "Opaque",
            "stringData": dict(data),
        }
        for name, data in contents.items()
    ]
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=1)


def _everywhere(address: str) -> dict[str, dict[str, str]]:
    # SQLAlchemy is told which driver: its default is one that the image does not have.
    runs = urlsplit(address)._replace(scheme="postgresql+psycopg2")
    accounts = runs._replace(path="/mlflow_auth").geturl()
    return {
        "ray-token": {"auth_token": secrets.token_hex(32)},
        "redis": {"password": secrets.token_urlsafe(24)},
        "mlflow-client": {"username": USER, "password": secrets.token_urlsafe(24)},
        "mlflow": {
            "backend-store-uri": runs.geturl(),
            "flask-secret-key": secrets.token_hex(32),
            # The file is read with interpolation: a percent sign, as in an encoded password, is doubled.
            "basic_auth.ini": _ACCOUNTS.read_text().format(uri=accounts.replace("%", "%%"), user=USER),
        },
    }


def main() -> int:
    """Print the manifest, or one line about what is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--local", action="store_true", help="database and object store are in the cluster")
    arguments = parser.parse_args()
    if sys.stdout.isatty():
        print("error: these are passwords; pipe them into kubectl create -f -", file=sys.stderr)
        return 2
    try:
        contents = local() if arguments.local else cloud(os.environ)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(manifest(contents))
    return 0


if __name__ == "__main__":
    sys.exit(main())

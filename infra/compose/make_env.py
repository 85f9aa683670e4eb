#!/usr/bin/env python3
"""Writes infra/compose/.env with fresh passwords, readable to its owner alone. Keeps one that is there."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

PATH = Path(__file__).with_name(".env")


def variables() -> dict[str, str]:
    """What compose.yaml asks for."""
    return {
        "S3_ID": secrets.token_hex(10),
        "S3_KEY": secrets.token_urlsafe(30),
        "DATABASE_PASSWORD": secrets.token_urlsafe(24),
        "MLFLOW_PASSWORD": secrets.token_urlsafe(24),
        "FLASK_KEY": secrets.token_hex(32),
        "RAY_TOKEN": secrets.token_hex(32),
    }


def main() -> int:
    """Write the file, unless it is there: the database knows the first passwords and no others."""
    try:
        descriptor = os.open(PATH, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        print(
            f"error: {PATH} is there, and volumes may know its passwords: remove both or neither",
            file=sys.stderr,
        )
        return 2
    with os.fdopen(descriptor, "w") as file:
        file.writelines(f"{name}={value}\n" for name, value in variables().items())
    print(PATH)
    return 0


if __name__ == "__main__":
    sys.exit(main())

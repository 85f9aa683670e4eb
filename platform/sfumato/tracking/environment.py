"""Where a run comes from: the revision of the code, and the machine and packages that it ran on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any


def git_tags(folder: Path) -> dict[str, str]:
    """Revision of the repository that holds the folder, and whether it has changes; empty without git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return {}
    tags = {
        "mlflow.source.git.commit": commit,
        "sfumato.git_dirty": str(bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))).lower(),
    }
    branch = _git(folder, "rev-parse", "--abbrev-ref", "HEAD")
    if branch and branch != "HEAD":
        tags["mlflow.source.git.branch"] = branch
    return tags


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def environment() -> dict[str, Any]:
    """Python, machine, accelerators and the version of every installed package."""
    import torch

    packages = {dist.metadata["Name"]: dist.version for dist in metadata.distributions()}
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "packages": {name: packages[name] for name in sorted(packages, key=str.lower)},
    }


def environment_json() -> str:
    return json.dumps(environment(), indent=2) + "\n"


def lock() -> str:
    """Every installed package with its version, as `pip install -r` takes it."""
    packages = {dist.metadata["Name"]: dist.version for dist in metadata.distributions()}
    return "".join(f"{name}=={packages[name]}\n" for name in sorted(packages, key=str.lower))

"""On the cluster: turns a submitted job into the command it stands for.

It runs in the package's folder, checks what only the cluster knows (versions, environment variables), and
changes to the project's folder, so that paths in the recipe keep their meaning.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import sfumato
from sfumato.errors import ConfigError
from sfumato.runtime.jobs import package
from sfumato.runtime.jobs.package import Order


@dataclass(frozen=True)
class Started:
    """The command's words, and notes for the user."""

    words: list[str]
    notes: list[str]


def prepare(job: Path, *, environment: Mapping[str, str]) -> Started:
    """Checks, and the command's words. The current folder is the project's from here on.

    Raises ConfigError with all that keeps the job from running here.
    """
    job = job.resolve()
    order = Order.load(job)
    problems = [
        f"environment variable {name} is not set on this cluster, and the job needs it (--secret {name})"
        for name in order.secrets
        if not environment.get(name)
    ]
    problems += _other_versions(order)
    if problems:
        raise ConfigError(*problems)
    if order.root is not None:
        try:
            Path(order.root).mkdir(parents=True, exist_ok=True)
            os.chdir(order.root)
        except OSError as error:
            raise ConfigError(
                f"--root {order.root}: not a folder that can be used here: {error.strerror}"
            ) from error
    file = [] if order.file is None else [str(job.parent / order.file)]
    words = [order.command, *file, *order.arguments]
    return Started(words, _notes(order))


def _other_versions(order: Order) -> list[str]:
    """Differences that would make this another program than the one submitted."""
    problems = []
    here = (sfumato.__version__, package.code_digest())
    if here != (order.version, order.code):
        problems.append(
            f"Sfumato here is {here[0]} (source {here[1]}), the job was submitted with {order.version} "
            f"(source {order.code}): use an image with the same version, or submit from that version"
        )
    if package.python_version() != order.python:
        problems.append(
            f"Python here is {package.python_version()}, the job comes from {order.python}: use the same"
        )
    return problems


def _notes(order: Order) -> list[str]:
    """Packages of other versions: the run works, its numbers may differ in the last bits."""
    here = package.versions()
    return [
        f"{name} here is {here[name]}, the job comes from {version}: numbers may differ in their last bits"
        for name, version in order.packages.items()
        if name in here and here[name] != version
    ]

"""`sfumato submit`: look at the cluster, pack, send. Nothing is sent that could not run there."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sfumato.errors import CapabilityError, ConfigError
from sfumato.runtime.jobs import needs, package, parsing
from sfumato.runtime.jobs.cluster import MARK, TRACKING, Cluster, Job
from sfumato.runtime.jobs.command import Command
from sfumato.runtime.jobs.secrets import check_no_secrets
from sfumato.tracking.redact import clean_uri

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9])?")
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_RUN = "sfumato.run"
# The package comes first on the path of the job's processes. No word of the user's is in this line, which
# the cluster hands to a shell and shows in its list of processes.
ENTRYPOINT = f"python -m sfumato jobs start {package.ORDER}"
# A job that is stopped ends as it does at ctrl-C.
_STOPPING = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "30"}


@dataclass(frozen=True)
class SubmitOptions:
    """How a command is to be run elsewhere; the same for a Ray cluster and for Kubernetes."""

    name: str | None = None
    root: str | None = None
    secrets: tuple[str, ...] = ()
    """NAME, or NAME=OTHER where the cluster's variable has another name."""
    environment: tuple[str, ...] = ()
    trust: bool = False

    def secret_names(self) -> tuple[str, ...]:
        return tuple(secret.partition("=")[0] for secret in self.secrets)

    def variables(self) -> dict[str, str]:
        """Settings of the job's environment: plain ones, and references to those of the cluster."""
        values = {}
        for setting in self.environment:
            name, equals, value = setting.partition("=")
            if not equals or not _VARIABLE.fullmatch(name):
                raise ConfigError(f"--env {name}: expected NAME=VALUE")
            check_no_secrets({name: value}, "--env")
            values[name] = value
        for secret in self.secrets:
            name, equals, other = secret.partition("=")
            if not _VARIABLE.fullmatch(name) or (equals and not _VARIABLE.fullmatch(other)):
                raise ConfigError(
                    f"--secret {name}: expected the name of an environment variable of the cluster (or "
                    "NAME=OTHER), never a value"
                )
            if equals:
                values[name] = f"${{{other}}}"
        return values


def read(words: Sequence[str], options: SubmitOptions) -> Command:
    """The command, checked as far as this machine can. Raises ConfigError."""
    if options.name is not None and not _NAME.fullmatch(options.name):
        raise ConfigError(
            f"--name {options.name!r}: expected letters, digits, dots, dashes and underscores, at most 100"
        )
    if options.root is not None and not Path(options.root).is_absolute():
        raise ConfigError(f"--root {options.root}: expected an absolute folder of the cluster")
    command = parsing.parse(words, trust=options.trust)
    if options.root is None and command.relative:
        raise ConfigError(
            f"{'; '.join(command.relative)}: relative to a folder that the cluster does not have; say which "
            "folder stands for it there with --root /a/folder (on a disk that its nodes share)"
        )
    return command


def submit(
    command: Command, options: SubmitOptions, cluster: Cluster, *, project: Path
) -> tuple[str, list[str]]:
    """Send a command to the cluster; the job's name, and what the user should know.

    Raises ConfigError or CapabilityError with everything that keeps it from running there.
    """
    variables = options.variables()
    notes = [note for note in (cluster.warning, check_version(cluster)) if note]
    check_resources(command, cluster)
    order = package.order(command, root=options.root, secrets=options.secret_names())
    files = package.files_of(command, order, root=project)
    name = choose_name(options.name, command.run, cluster.jobs(), cluster.address)
    with tempfile.TemporaryDirectory(prefix="sfumato-") as scratch:
        archive = Path(scratch) / "package.zip"
        package.write(files, archive)
        metadata = {MARK: str(command), _RUN: command.run, TRACKING: clean_uri(command.tracking or "")}
        environment = {"working_dir": str(archive), "env_vars": {**_STOPPING, **variables}}
        cluster.submit(name, ENTRYPOINT, environment, metadata)
    return name, notes


def check_version(cluster: Cluster) -> str | None:
    """A note where the last part of Ray's version differs. Raises ConfigError where more does."""
    ours, theirs = package.versions()["ray"], cluster.ray_version
    if ours == theirs:
        return None
    if ours.split(".")[:2] != theirs.split(".")[:2]:
        raise ConfigError(
            f"the cluster at {cluster.address} runs Ray {theirs} and this machine has Ray {ours}: install "
            f"ray=={theirs} here, or use a cluster with {ours}"
        )
    return f"the cluster runs Ray {theirs}, this machine has {ours}"


def check_resources(command: Command, cluster: Cluster) -> None:
    nodes = cluster.nodes()
    if missing := needs.lacking(needs.needs_of(command), nodes):
        raise CapabilityError(
            *(f"the cluster at {cluster.address} ({needs.text_of(nodes)}): {line}" for line in missing)
        )


def choose_name(wanted: str | None, run: str, jobs: Sequence[Job], address: str) -> str:
    """A name that no job has. Raises ConfigError where `wanted` is taken, or the run is going on already."""
    taken = {job.name: job for job in jobs}
    if wanted is not None:
        if wanted in taken:
            raise ConfigError(
                f"job name {wanted!r} is taken at {address} (status {taken[wanted].status}): choose another "
                "--name"
            )
        return wanted
    for job in jobs:
        if job.run == run and not job.over:
            raise ConfigError(
                f"job {job.name!r} at {address} is working on this run already: follow it with sfumato jobs "
                f"attach {job.name} (give it another --name to submit it anyway)"
            )
    number = 1
    while f"{run}-{number}" in taken:
        number += 1
    return f"{run}-{number}"

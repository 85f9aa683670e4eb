"""`sfumato submit --kubernetes`: render, apply, follow."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sfumato.errors import ConfigError
from sfumato.runtime.jobs import manifest, package
from sfumato.runtime.jobs.cluster import Job
from sfumato.runtime.jobs.command import Command
from sfumato.runtime.jobs.kubectl import Kubectl
from sfumato.runtime.jobs.manifest import JobSettings
from sfumato.runtime.jobs.pods import PodSettings
from sfumato.runtime.jobs.submit import SubmitOptions, choose_name

_POLL_S = 3.0


def settings_of(
    options: SubmitOptions, *, namespace: str, queue: str | None, token_secret: str | None, pods: PodSettings
) -> JobSettings:
    """The job's settings; environment and secrets come from the options.

    Raises ConfigError for an image without a version, or a secret that is no reference to a Secret.
    """
    name, _, tag = pods.image.rpartition("/")[2].partition(":")
    if not name or not tag or tag == "latest":
        raise ConfigError(
            f"--image {pods.image!r}: expected an image with a version (registry/sfumato-gpu:0.1.0), as a "
            "moving tag would change a run when it resumes"
        )
    secrets: dict[str, tuple[str, str]] = {}
    for given in options.secrets:
        variable, _, reference = given.partition("=")
        secret, slash, key = reference.partition("/")
        if not slash or not secret or not key:
            raise ConfigError(
                f"--secret {variable}: on Kubernetes expected NAME=SECRET/KEY, a key of a Secret"
            )
        secrets[variable] = (secret, key)
    plain = replace(options, secrets=()).variables()
    return JobSettings(
        namespace=namespace,
        pods=replace(pods, environment=plain, secrets=secrets),
        ray_version=package.versions()["ray"],
        queue=queue,
        token_secret=token_secret,
    )


def render(
    command: Command, options: SubmitOptions, settings: JobSettings, *, project: Path, name: str
) -> list[dict[str, Any]]:
    """The manifests of the job."""
    order = package.order(command, root=settings.pods.root, secrets=options.secret_names())
    files = package.files_of(command, order, root=project)
    return manifest.documents(command, files, name=name, settings=settings)


def send(
    command: Command, options: SubmitOptions, settings: JobSettings, kubectl: Kubectl, *, project: Path
) -> str:
    """Apply the manifests; the job's name. Raises ConfigError before anything is made where it cannot run."""
    name = options.name or f"{manifest.run_label(command)}-1"
    render(command, options, settings, project=project, name=name)  # what is wrong with it, before asking
    kubectl.check()
    where = f"namespace {settings.namespace}"
    name = choose_name(options.name, manifest.run_label(command), kubectl.jobs(), where)
    kubectl.apply(render(command, options, settings, project=project, name=name))
    return name


def follow(kubectl: Kubectl, name: str, show: Callable[[str], None]) -> Job:
    """Everything that the job says, until it is over; the job as it ended."""
    said, followed = "", False
    while True:
        job = kubectl.job(name)
        if job.status != said:
            said = job.status
            show(f"job {name}: {said.lower()}{f' ({job.message})' if job.message else ''}\n")
        if said == "RUNNING" and not followed:
            followed = _stream(kubectl, name, show)
        elif said != "RUNNING":
            followed = False  # a job that is tried again has new logs
        if job.over:
            return job
        time.sleep(_POLL_S)


def _stream(kubectl: Kubectl, name: str, show: Callable[[str], None]) -> bool:
    """Show the logs to their end; whether there were any (the pod may not be there yet)."""
    process = kubectl.logs(name)
    any_line = False
    try:
        assert process.stdout is not None
        for line in process.stdout:
            any_line = True
            show(line)
    finally:
        process.kill()
        process.wait()
    return any_line


def attach_command(kubectl: Kubectl, name: str) -> str:
    context = f" --context {kubectl.context}" if kubectl.context else ""
    return f"sfumato jobs attach {name} --kubernetes --namespace {kubectl.namespace}{context}"

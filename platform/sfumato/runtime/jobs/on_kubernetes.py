"""`sfumato submit --kubernetes`: render, and make what was rendered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from sfumato.errors import ConfigError, SfumatoError
from sfumato.runtime.jobs import manifest, package
from sfumato.runtime.jobs.command import Command
from sfumato.runtime.jobs.kubectl import Kubectl, Taken
from sfumato.runtime.jobs.manifest import JobSettings, Schedule
from sfumato.runtime.jobs.pods import PodSettings
from sfumato.runtime.jobs.submit import SubmitOptions, choose_name


def settings_of(
    options: SubmitOptions,
    *,
    namespace: str,
    queue: str | None,
    token_secret: str | None,
    pods: PodSettings,
    deadline_days: float = JobSettings.deadline_days,
    schedule: Schedule | None = None,
) -> JobSettings:
    """The job's settings; environment and secrets come from the options.

    Raises ConfigError for an image without a version, a secret that is no reference to a Secret, or a
    schedule of jobs that are to wait in a queue.
    """
    if schedule is not None and queue is not None:
        raise ConfigError(
            f"--queue {queue} with --schedule: KubeRay 1.7 gives the jobs of a schedule no labels, by which "
            "Kueue knows a queue's jobs, so they would not wait: leave --queue out (a LocalQueue named "
            "`default` takes jobs that name none)"
        )
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
        deadline_days=deadline_days,
        schedule=schedule,
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
    """Make the job; its name. Raises ConfigError, and leaves nothing behind, where it cannot run."""
    run = manifest.run_label(command)
    name = default_name(command, options, settings)
    render(command, options, settings, project=project, name=name)  # what is wrong with it, before asking
    kubectl.check()
    where = f"namespace {settings.namespace}"
    if settings.schedule is None:
        name = choose_name(options.name, run, [found.job for found in kubectl.jobs()], where)
    _check_parts(kubectl, settings.pods, name)
    package_map, job = render(command, options, settings, project=project, name=name)
    _create(kubectl, name, job, package_map)
    return name


def default_name(command: Command, options: SubmitOptions, settings: JobSettings) -> str:
    """The job's name if no other has it."""
    if settings.schedule is not None:
        return options.name or manifest.schedule_name(command)
    return options.name or f"{manifest.run_label(command)}-1"


def _check_parts(kubectl: Kubectl, pods: PodSettings, name: str) -> None:
    """Raises ConfigError where pods would wait for ever, or the package's name is taken."""
    account, claim = f"serviceaccount/{pods.account}", f"persistentvolumeclaim/{pods.claim}"
    package_map = f"configmap/{name}"
    there = kubectl.present(account, claim, package_map)
    if there is None:
        return
    needed = {account: "--service-account (`default` is always there)", claim: "--claim"}
    problems = [
        f"namespace {kubectl.namespace} has no {what}: create it, or name another one with {option}"
        for what, option in needed.items()
        if what not in there
    ]
    if package_map in there:
        problems.append(
            f"{package_map} is in namespace {kubectl.namespace} already, and the job's package would have "
            "that name: choose another --name"
        )
    if problems:
        raise ConfigError(*problems)


def _create(kubectl: Kubectl, name: str, job: dict[str, Any], package_map: dict[str, Any]) -> None:
    """The job or its schedule, and then its package, which is deleted with it; both or none."""
    kind = job["kind"]
    try:
        made = kubectl.create(job)
    except Taken as error:
        raise ConfigError(
            f"{kind} {name!r} is in namespace {kubectl.namespace} already: choose another --name"
        ) from error
    try:
        kubectl.create(manifest.owned(package_map, by=made))
    except BaseException as error:
        try:
            kubectl.delete(name) if kind == "RayJob" else kubectl.unschedule(name)
        except SfumatoError as second:
            raise ConfigError(
                f"{error}; {kind} {name} was made and could not be deleted ({second}): "
                f"kubectl -n {kubectl.namespace} delete {kind.lower()} {name}"
            ) from error
        raise

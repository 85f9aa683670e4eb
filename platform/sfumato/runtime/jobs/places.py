"""Where jobs are: a Ray cluster or a namespace of Kubernetes, with the same few things to do with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from sfumato.errors import ConfigError, SfumatoError
from sfumato.runtime.jobs import follow as following
from sfumato.runtime.jobs import follow_rayjob
from sfumato.runtime.jobs.cluster import Cluster, Job
from sfumato.runtime.jobs.kubectl import Kubectl
from sfumato.runtime.jobs.rayjob import RayJob


class Place(Protocol):
    """A name that is unknown raises ConfigError."""

    def jobs(self) -> list[Job]: ...

    def job(self, name: str) -> Job: ...

    def follow(self, name: str, show: Callable[[str], None]) -> Job:
        """Show the job's output until it ends; the finished job."""

    def stop(self, name: str) -> None:
        """Ask a job to end. Raises ConfigError where it has, or is not ours to stop."""

    def attach_command(self, name: str) -> str:
        """What to type to follow the job again."""


class OnRay:
    """Jobs of a Ray cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def jobs(self) -> list[Job]:
        return [job if job.over else self._with_progress(job) for job in self._cluster.jobs()]

    def _with_progress(self, job: Job) -> Job:
        try:
            return replace(job, progress=following.progress_in(self._cluster.logs(job.name)))
        except SfumatoError:  # it has not begun, or its node is gone
            return job

    def job(self, name: str) -> Job:
        return self._cluster.job(name)

    def follow(self, name: str, show: Callable[[str], None]) -> Job:
        return following.follow(self._cluster, name, show)

    def stop(self, name: str) -> None:
        if self.job(name).over or not self._cluster.stop(name):
            raise ConfigError(f"job {name!r} has already ended (status {self.job(name).status})")

    def attach_command(self, name: str) -> str:
        return following.attach_command(self._cluster.address, name)


class OnKubernetes:
    """RayJobs and schedules of a namespace. Only those that `sfumato submit` made are listed and stopped."""

    def __init__(self, kubectl: Kubectl) -> None:
        self._kubectl = kubectl

    def jobs(self) -> list[Job]:
        schedules = self._kubectl.schedules()
        mine = [
            replace(_named(found, schedules), progress=self._progress(found))
            for found in self._kubectl.jobs()
            if found.ours or _started_by(found, schedules)
        ]
        return mine + schedules

    def _progress(self, found: RayJob) -> str:
        if found.job.status != "RUNNING":
            return ""
        try:
            return following.progress_in(self._kubectl.last_lines(found.job.name))
        except SfumatoError:
            return ""

    def job(self, name: str) -> Job:
        found = self._kubectl.find(name)
        if found is None and name in [schedule.name for schedule in self._kubectl.schedules()]:
            raise ConfigError(
                f"{name!r} is a schedule: name one of the jobs that it has started (sfumato jobs list "
                f"--kubernetes --namespace {self._kubectl.namespace})"
            )
        return self._kubectl.job(name).job if found is None else found.job

    def follow(self, name: str, show: Callable[[str], None]) -> Job:
        return follow_rayjob.follow(self._kubectl, name, show)

    def stop(self, name: str) -> None:
        if self._kubectl.unschedule(name):
            return
        found = self._kubectl.job(name)
        if _started_by(found, self._kubectl.schedules()):
            self._kubectl.delete_started(name)
            return
        if not found.ours:
            raise ConfigError(
                f"RayJob {name!r} was not made by sfumato submit: delete it with "
                f"kubectl -n {self._kubectl.namespace} delete rayjob {name}"
            )
        self._kubectl.delete(name)

    def attach_command(self, name: str) -> str:
        return follow_rayjob.attach_command(self._kubectl, name)


def _started_by(found: RayJob, schedules: Sequence[Job]) -> Job | None:
    """The schedule, one of ours, that started the job."""
    return next((schedule for schedule in schedules if schedule.name == found.schedule), None)


def _named(found: RayJob, schedules: Sequence[Job]) -> Job:
    """The job, with what its schedule knows of it."""
    schedule = _started_by(found, schedules)
    if schedule is None:
        return found.job
    return replace(found.job, command=schedule.command, run=schedule.run, tracking=schedule.tracking)

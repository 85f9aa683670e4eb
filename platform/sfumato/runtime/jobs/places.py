"""Where jobs are: a Ray cluster or a namespace of Kubernetes, with the same few things to do with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sfumato.errors import ConfigError
from sfumato.runtime.jobs import follow as following
from sfumato.runtime.jobs import follow_rayjob
from sfumato.runtime.jobs.cluster import Cluster, Job
from sfumato.runtime.jobs.kubectl import Kubectl


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
        return self._cluster.jobs()

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
    """RayJobs of a namespace. Only those that `sfumato submit` made are listed and stopped."""

    def __init__(self, kubectl: Kubectl) -> None:
        self._kubectl = kubectl

    def jobs(self) -> list[Job]:
        return [found.job for found in self._kubectl.jobs() if found.ours]

    def job(self, name: str) -> Job:
        return self._kubectl.job(name).job

    def follow(self, name: str, show: Callable[[str], None]) -> Job:
        return follow_rayjob.follow(self._kubectl, name, show)

    def stop(self, name: str) -> None:
        if not self._kubectl.job(name).ours:
            raise ConfigError(
                f"RayJob {name!r} was not made by sfumato submit: delete it with "
                f"kubectl -n {self._kubectl.namespace} delete rayjob {name}"
            )
        self._kubectl.delete(name)

    def attach_command(self, name: str) -> str:
        return follow_rayjob.attach_command(self._kubectl, name)

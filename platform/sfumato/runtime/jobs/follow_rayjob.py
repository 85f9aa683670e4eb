"""Follows a RayJob until it ends: its states, its output, and what it waits for."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from sfumato.errors import SfumatoError
from sfumato.runtime.jobs.cluster import Job
from sfumato.runtime.jobs.kubectl import Kubectl
from sfumato.runtime.jobs.rayjob import RayJob
from sfumato.runtime.jobs.replay import Replay

PATIENCE_S = 60.0
"""How long the API server may be away, and how long a job may wait before a hint says for what."""
_POLL_S = 3.0
# By `jobDeploymentStatus`.
_HINTS = {
    "": "no operator has looked at it: does KubeRay run, and watch namespace {namespace}? "
    "kubectl get pods --all-namespaces -l app.kubernetes.io/name=kuberay-operator",
    "Initializing": "its cluster is not ready; what its pods wait for: "
    "kubectl -n {namespace} describe raycluster,pod -l ray.io/cluster={cluster}",
    "Suspended": "it waits in its queue: kubectl -n {namespace} get workloads",
}
# A pod that is not there yet, or not any more; the job's own state says more.
_USUAL = ("(NotFound)", "is waiting to start", "timed out waiting for the condition")


def follow(kubectl: Kubectl, name: str, show: Callable[[str], None]) -> Job:
    """Show everything that the job says until it is over; the job as it ended.

    A stream that breaks is opened again, and nothing is shown twice. Raises SfumatoError when the API server
    does not answer for longer than a minute.
    """
    states, output = _States(kubectl.namespace, show), Replay(show)
    complaint, last = "", kubectl.job(name)
    while True:
        found = _look(kubectl, name)
        if found is None:
            show(f"job {name}: its RayJob was deleted\n")
            return replace(last.job, status="STOPPED")
        last = found
        states(found)
        if found.job.status == "RUNNING" or found.job.over:
            output.open(found.attempt)
            said = _stream(kubectl, name, output, over=found.job.over)
            unusual = bool(said) and not any(usual in said for usual in _USUAL)
            if said != complaint and (unusual or (found.job.status == "SUCCEEDED" and output.empty)):
                show(f"job {name}: its output cannot be read: {said}\n")
                complaint = said
        if found.job.over:
            return found.job
        time.sleep(_POLL_S)


def attach_command(kubectl: Kubectl, name: str) -> str:
    context = f" --context {kubectl.context}" if kubectl.context else ""
    return f"sfumato jobs attach {name} --kubernetes --namespace {kubectl.namespace}{context}"


@dataclass
class _States:
    """Shows each state once, and after a minute in it a hint."""

    namespace: str
    show: Callable[[str], None]
    _said: str = ""
    _hint_at: float = field(default=0.0)

    def __call__(self, found: RayJob) -> None:
        job = found.job
        if job.status != self._said:
            self._said = job.status
            self._hint_at = time.monotonic() + PATIENCE_S
            self.show(f"job {job.name}: {job.status.lower()}{f' ({job.message})' if job.message else ''}\n")
        elif time.monotonic() >= self._hint_at and found.stage in _HINTS:
            hint = _HINTS[found.stage].format(namespace=self.namespace, cluster=found.cluster)
            self.show(f"job {job.name}: still {job.status.lower()}: {hint}\n")
            self._hint_at = float("inf")


def _look(kubectl: Kubectl, name: str) -> RayJob | None:
    """The job, with retries for a while if the API server does not answer; None where it was deleted."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return kubectl.find(name)
        except SfumatoError as error:
            if time.monotonic() > end:
                raise SfumatoError(
                    f"contact with the cluster is lost ({error}); the job may still be running: "
                    f"{attach_command(kubectl, name)}"
                ) from error
        time.sleep(_POLL_S)


def _stream(kubectl: Kubectl, name: str, output: Replay, *, over: bool) -> str:
    """Show the output to the end of the stream; why it ended, where it should not have."""
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = kubectl.logs(name, errors)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                # A line that was cut off comes again, whole.
                if line.endswith("\n") or over:
                    output(line)
            process.wait()
        finally:
            process.kill()
            process.wait()
        if not process.returncode:
            return ""
        errors.seek(0)
        said = [line.strip() for line in errors if line.strip()]
        return said[-1][:300] if said else f"kubectl ended with status {process.returncode}"

"""kubectl, as far as a job needs it: what is missing is one line, what it prints is read as JSON."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from sfumato.errors import ConfigError, SfumatoError
from sfumato.runtime.jobs.cluster import Job
from sfumato.runtime.jobs.manifest import COMMAND_NOTE, RUN_LABEL

_TIMEOUT_S = 60.0
# What KubeRay calls the states of a RayJob, in Ray's words for jobs.
_STATES = {"Complete": "SUCCEEDED", "Failed": "FAILED", "ValidationFailed": "FAILED", "Running": "RUNNING"}
_GROUP = "ray.io"


@dataclass(frozen=True)
class Kubectl:
    """A namespace of a cluster; `context` None is kubectl's current one."""

    namespace: str
    context: str | None = None

    def check(self) -> None:
        """Raises ConfigError where kubectl, its context, the cluster, CRDs or namespace are missing."""
        if shutil.which("kubectl") is None:
            raise ConfigError("kubectl is not installed, and --kubernetes needs it (--dry-run does without)")
        self._check_context()
        known = self._run("api-resources", f"--api-group={_GROUP}", "-o", "name").split()
        if f"rayjobs.{_GROUP}" not in known:
            raise ConfigError(
                f"{self._where} does not know RayJob: install KubeRay 1.7 or newer there (CRDs and operator)"
            )
        if not self._run("get", "namespace", self.namespace, "--ignore-not-found", "-o", "name").strip():
            raise ConfigError(
                f"{self._where} has no namespace {self.namespace!r}: create it, "
                "or name another one with --namespace"
            )

    def jobs(self) -> list[Job]:
        """The RayJobs of the namespace that Sfumato submitted."""
        found = self._read("get", "rayjobs", "-l", RUN_LABEL)
        return [_job(item) for item in found["items"]]

    def job(self, name: str) -> Job:
        """Raises ConfigError where there is none of that name."""
        text = self._in_namespace("get", "rayjob", name, "--ignore-not-found", "-o", "json")
        if not text.strip():
            raise ConfigError(f"no RayJob {name!r} in namespace {self.namespace} of {self._where}")
        return _job(json.loads(text))

    def apply(self, documents: Sequence[dict[str, Any]]) -> None:
        self._in_namespace("apply", "-f", "-", given=yaml.safe_dump_all(documents, sort_keys=False))

    def delete(self, name: str) -> None:
        """End a job: its RayJob and with it its cluster, and its package. The run's folder stays."""
        self._in_namespace(
            "delete", f"rayjob/{name}", f"configmap/{name}", "--wait=false", "--ignore-not-found"
        )

    def logs(self, name: str) -> subprocess.Popen[str]:
        """What the job says, from its beginning, as it comes."""
        command = [*self._command(), "-n", self.namespace, "logs", "-f", f"job/{name}"]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace"
        )

    @property
    def _where(self) -> str:
        return f"context {self.context!r}" if self.context else "kubectl's current context"

    def _check_context(self) -> None:
        known = _call(["kubectl", "config", "get-contexts", "-o", "name"]).split()
        if self.context is not None:
            if self.context not in known:
                raise ConfigError(
                    f"kubectl knows no context {self.context!r}; it knows {', '.join(known) or 'none'}"
                )
        elif not _call(["kubectl", "config", "view", "-o", "jsonpath={.current-context}"]).strip():
            raise ConfigError(
                f"kubectl has no current context: name one by --context; it has {', '.join(known) or 'none'}"
            )

    def _read(self, *arguments: str) -> Any:
        return json.loads(self._in_namespace(*arguments, "-o", "json"))

    def _in_namespace(self, *arguments: str, given: str | None = None) -> str:
        return self._run("-n", self.namespace, *arguments, given=given)

    def _run(self, *arguments: str, given: str | None = None) -> str:
        return _call([*self._command(), "--request-timeout=30s", *arguments], given=given)

    def _command(self) -> list[str]:
        return ["kubectl", *(("--context", self.context) if self.context else ())]


def _call(command: list[str], given: str | None = None) -> str:
    try:
        done = subprocess.run(
            command, input=given, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise SfumatoError(f"kubectl did not answer within {_TIMEOUT_S:.0f} s") from error
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        raise ConfigError(f"kubectl: {said[-1][:300]}")
    return done.stdout


def _job(item: dict[str, Any]) -> Job:
    """A RayJob in the words of jobs on a Ray cluster."""
    metadata, status = item["metadata"], item.get("status") or {}
    stage = str(status.get("jobDeploymentStatus") or "Pending")
    return Job(
        name=metadata["name"],
        status=_STATES.get(stage, stage.upper()),
        message=str(status.get("message") or status.get("reason") or ""),
        command=(metadata.get("annotations") or {}).get(COMMAND_NOTE, ""),
        run=(metadata.get("labels") or {}).get(RUN_LABEL, ""),
        started=None,
        ended=None,
        exit_code=None,
    )

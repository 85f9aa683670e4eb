"""kubectl, as far as a job needs it: what is missing is one line, what it prints is read as JSON."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from dataclasses import dataclass
from typing import IO, Any

from sfumato.errors import ConfigError, SfumatoError
from sfumato.runtime.jobs import rayjob
from sfumato.runtime.jobs.cluster import Job
from sfumato.runtime.jobs.manifest import NAME_LABEL, RUN_LABEL
from sfumato.runtime.jobs.rayjob import RayJob

_TIMEOUT_S = 60.0
_GROUP = "ray.io"


class Forbidden(ConfigError):
    """The user has no right to this request."""


class Taken(ConfigError):
    """An object of this kind and name exists already."""


# As kubectl writes the reasons of the API server: `Error from server (Forbidden): ...`.
_REASONS: dict[str, type[ConfigError]] = {"(Forbidden)": Forbidden, "(AlreadyExists)": Taken}


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
        self._check_namespace()

    def present(self, *objects: str) -> set[str] | None:
        """Those of the objects (kind/name) that the namespace has; None where the user may not look."""
        try:
            return set(self._in_namespace("get", *objects, "--ignore-not-found", "-o", "name").split())
        except Forbidden:
            return None

    def jobs(self) -> list[RayJob]:
        """The RayJobs of the namespace, whoever made them."""
        found = [
            rayjob.read(item)
            for item in json.loads(self._in_namespace("get", "rayjobs", "-o", "json"))["items"]
        ]
        if not found:  # a namespace that is not there has none either
            self._check_namespace()
        return found

    def find(self, name: str) -> RayJob | None:
        """The RayJob of that name, if there is one."""
        text = self._in_namespace("get", "rayjob", name, "--ignore-not-found", "-o", "json")
        return rayjob.read(json.loads(text)) if text.strip() else None

    def job(self, name: str) -> RayJob:
        """Raises ConfigError where there is none of that name."""
        found = self.find(name)
        if found is None:
            raise ConfigError(f"no RayJob {name!r} in namespace {self.namespace} of {self._where}")
        return found

    def create(self, document: dict[str, Any]) -> dict[str, Any]:
        """Make an object; as the API server has it. Raises Taken where there is one of its name."""
        made = self._in_namespace("create", "-f", "-", "-o", "json", given=json.dumps(document))
        return dict(json.loads(made))

    def delete(self, name: str) -> None:
        """End a job of ours: its RayJob, and with it its cluster and its package. The run's folder stays."""
        ours = ("-l", f"{RUN_LABEL},{NAME_LABEL}={name}", "--wait=false", "--ignore-not-found")
        self._in_namespace("delete", "rayjob", *ours)
        with contextlib.suppress(Forbidden):  # packages of Sfumato 0.1 belong to no RayJob
            self._in_namespace("delete", "configmap", *ours)

    def logs(self, name: str, errors: IO[str]) -> subprocess.Popen[str]:
        """What the job says, from its beginning, as it comes; what kubectl has to say goes to `errors`."""
        command = [*self._command(), "-n", self.namespace, "logs", "-f", f"job/{name}"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, errors="replace")

    def last_lines(self, name: str) -> str:
        """The end of a job's output so far."""
        return self._in_namespace("logs", f"job/{name}", "--tail=200")

    def schedules(self) -> list[Job]:
        """The RayCronJobs that `sfumato submit --schedule` made, as jobs that wait for their time."""
        try:
            found = self._in_namespace("get", "raycronjobs", "-l", RUN_LABEL, "-o", "json")
        except (ConfigError, SfumatoError):  # an older KubeRay has none, and not everybody may look
            return []
        return [rayjob.read_schedule(item) for item in json.loads(found)["items"]]

    def delete_started(self, name: str) -> None:
        """End a job that a schedule has started; the schedule and its package stay."""
        self._in_namespace("delete", "rayjob", name, "--wait=false", "--ignore-not-found")

    def unschedule(self, name: str) -> bool:
        """Delete the schedule of that name, if there is one of ours. It owns the jobs that it has started:
        they end with it."""
        if name not in [job.name for job in self.schedules()]:
            return False
        self._in_namespace("delete", "raycronjob", name, "--wait=false")
        return True

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

    def _check_namespace(self) -> None:
        try:
            found = self._run("get", "namespace", self.namespace, "--ignore-not-found", "-o", "name")
        except Forbidden:  # somebody with rights in this namespace alone; making the job tells
            return
        if not found.strip():
            raise ConfigError(
                f"{self._where} has no namespace {self.namespace!r}: create it, "
                "or name another one with --namespace"
            )

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
    except FileNotFoundError as error:
        raise ConfigError("kubectl is not installed, and --kubernetes needs it") from error
    except subprocess.TimeoutExpired as error:
        raise SfumatoError(f"kubectl did not answer within {_TIMEOUT_S:.0f} s") from error
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        kind = next((kind for reason, kind in _REASONS.items() if reason in done.stderr), ConfigError)
        raise kind(f"kubectl: {said[-1][:300]}")
    return done.stdout

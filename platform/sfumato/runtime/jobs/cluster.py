"""A Ray cluster seen from outside, through its dashboard: what it is and has, and its jobs.

Ray's client raises bare RuntimeErrors with the server's traceback in them; here each becomes one line. The
token comes from where Ray itself looks: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from sfumato.errors import ConfigError, SfumatoError

Resources = Mapping[str, float]
_Result = TypeVar("_Result")
_PATIENCE_S = 60.0
_LOOPBACK = ("127.", "localhost", "[::1]", "::1")
# Of all jobs on the cluster, those that this program submitted.
MARK = "sfumato.command"
TRACKING = "sfumato.tracking"


@dataclass(frozen=True)
class Job:
    """A submitted job as the cluster tells it. Times in seconds since 1970."""

    name: str
    status: str
    message: str
    command: str
    run: str
    started: float | None
    ended: float | None
    exit_code: int | None
    tracking: str = ""
    """The MLflow server that records it, if it is not a store in the project's folder."""
    progress: str = ""
    """The last line of progress that it printed, while it runs."""

    @property
    def over(self) -> bool:
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")


class Cluster:
    """Jobs of the cluster at an address such as http://head:8265.

    Raises ConfigError in one line where nobody answers there, the token is wrong, or the certificate is not
    trusted; `ca_file` names the authority of a cluster with certificates of its own.
    """

    def __init__(self, address: str, *, ca_file: Path | None = None) -> None:
        self.address = _checked(address)
        if ca_file is not None and not ca_file.is_file():
            raise ConfigError(f"--ca-file {ca_file}: no such file")
        self._client = self._connected(str(ca_file) if ca_file else _ca_of_environment())
        answer = self._get("/api/version")
        self.ray_version = str(answer["ray_version"])

    def _connected(self, verify: str | bool) -> Any:
        import ray.exceptions
        from ray.dashboard.modules import dashboard_sdk
        from ray.dashboard.modules.job import sdk
        from ray.dashboard.modules.job.sdk import JobSubmissionClient

        for module in (dashboard_sdk, sdk):  # these tell of every request
            logging.getLogger(module.__name__).setLevel(logging.ERROR)

        # Ray takes an address from these over the one that it is given.
        for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
            os.environ.pop(name, None)

        def connect() -> Any:
            try:
                return JobSubmissionClient(self.address, verify=verify)
            except ray.exceptions.AuthenticationError as error:
                if "invalid" in str(error).lower():
                    raise
            # Ray refuses to ask where this machine has no token; whether one is needed, the cluster knows.
            return JobSubmissionClient(self.address, verify=verify, headers={"Authorization": ""})

        return self._asked(connect)

    @property
    def warning(self) -> str | None:
        """What the user should know of how the cluster is reached."""
        parts = urlsplit(self.address)
        near = (parts.hostname or "").startswith(_LOOPBACK)
        if parts.scheme == "http" and not near and _has_token():
            return f"{self.address} is not encrypted, and the token goes over it: use https, or a tunnel"
        return None

    def nodes(self) -> list[Resources]:
        """The resources of every node that is alive, used or not."""
        # A head that has just started has none yet.
        end = time.monotonic() + _PATIENCE_S
        while True:
            found = self._get("/api/v0/nodes?detail=1&limit=10000")["data"]["result"]["result"]
            alive: list[Resources] = [
                dict(node.get("resources_total") or {}) for node in found if node["state"] == "ALIVE"
            ]
            if alive or time.monotonic() > end:
                return alive
            time.sleep(1.0)

    def submit(
        self, name: str, entrypoint: str, runtime_env: dict[str, Any], metadata: dict[str, str]
    ) -> None:
        """Start a job. Raises ConfigError where a job has the name already."""

        def send() -> str:
            return str(
                self._client.submit_job(
                    entrypoint=entrypoint, submission_id=name, runtime_env=runtime_env, metadata=metadata
                )
            )

        end = time.monotonic() + _PATIENCE_S
        while True:
            try:
                self._asked(send)
                return
            except SfumatoError as error:  # a head that has just started has nobody yet to run a job
                if "No available agent" not in str(error) or time.monotonic() > end:
                    raise
            time.sleep(1.0)

    def jobs(self) -> list[Job]:
        """All submitted jobs that the cluster remembers, the oldest first."""
        found = self._asked(self._client.list_jobs)
        mine = [_job(details) for details in found if details.submission_id]
        return sorted(mine, key=lambda job: job.started or 0.0)

    def job(self, name: str) -> Job:
        """Raises ConfigError where there is none of that name."""
        for job in self.jobs():
            if job.name == name:
                return job
        known = ", ".join(job.name for job in self.jobs()[-5:]) or "none"
        raise ConfigError(f"no job {name!r} at {self.address}; the latest ones: {known}")

    def stop(self, name: str) -> bool:
        """Ask a job to end; whether it was still going."""
        return bool(self._asked(lambda: self._client.stop_job(name)))

    def logs(self, name: str) -> str:
        return str(self._asked(lambda: self._client.get_job_logs(name)))

    def tail(self, name: str) -> AsyncIterator[str]:
        """The job's output from its beginning, in pieces as it comes; ends with the job."""
        return self._client.tail_job_logs(name)  # type: ignore[no-any-return]

    def _get(self, path: str) -> Any:
        answer = self._asked(lambda: self._client._do_request("GET", path))
        if answer.status_code != 200:
            where = self.address + path.partition("?")[0]
            raise SfumatoError(f"{where} answers {answer.status_code}: {answer.text[:200]}")
        return answer.json()

    def _asked(self, call: Callable[[], _Result]) -> _Result:
        import ray.exceptions
        import requests

        try:
            return call()
        except ray.exceptions.AuthenticationError as error:
            raise ConfigError(self._token_line(str(error))) from error
        except (ConnectionError, requests.exceptions.RequestException) as error:
            # Ray's client raises its own error over that of requests.
            for cause in (error, error.__context__):
                if isinstance(cause, requests.exceptions.SSLError):
                    raise ConfigError(self._certificate_line(str(cause))) from error
            raise ConfigError(
                f"no Ray cluster answers at {self.address} ({_last(str(error))}): is its head running, and "
                "is this the address of its dashboard, http://HEAD:8265?"
            ) from error
        except RuntimeError as error:
            raise SfumatoError(f"{self.address} refuses: {_last(str(error))}") from error

    def _certificate_line(self, said: str) -> str:
        reason = re.search(r"\] ([^(]+) \(_ssl", said)
        why = reason[1] if reason else "TLS failed"
        return f"the certificate of {self.address} is not trusted ({why}): name its authority with --ca-file"

    def _token_line(self, said: str) -> str:
        given = [name for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH") if os.environ.get(name)]
        where = f"${given[0]}" if given else "~/.ray/auth_token"
        if "invalid" in said.lower():
            return (
                f"{self.address} does not accept the token of {where}: put the cluster's own "
                "into $RAY_AUTH_TOKEN_PATH (a file that only you can read)"
            )
        return (
            f"{self.address} asks for a token and none was given: set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN_PATH to a file with the cluster's token"
        )


LINE = ("job", "status", "time", "progress", "mlflow", "command")
"""The columns of a table of jobs."""


def line_of(job: Job, now: float) -> Mapping[str, str]:
    """A job as a row of a table."""
    seconds = 0.0 if job.started is None else (job.ended or now) - job.started
    hours, rest = divmod(int(seconds), 3600)
    return {
        "job": job.name,
        "status": job.status.lower(),
        "time": f"{hours}:{rest // 60:02}:{rest % 60:02}",
        "progress": job.progress,
        "mlflow": job.tracking,
        "command": job.command,
    }


def _job(details: Any) -> Job:
    metadata = details.metadata or {}
    return Job(
        name=details.submission_id,
        status=str(getattr(details.status, "value", details.status)),
        message=details.message or "",
        command=metadata.get(MARK, details.entrypoint),
        run=metadata.get("sfumato.run", ""),
        started=_seconds(details.start_time),
        ended=_seconds(details.end_time),
        exit_code=details.driver_exit_code,
        tracking=metadata.get(TRACKING, ""),
    )


def _seconds(milliseconds: int | None) -> float | None:
    return None if not milliseconds else milliseconds / 1000


def _checked(address: str) -> str:
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"address {address!r}: expected that of the cluster's dashboard, such as http://head:8265 (jobs "
            "do not go through ray:// or the port of the GCS)"
        )
    if parts.username or parts.password:
        raise ConfigError("the address holds a user name or password: give the token by RAY_AUTH_TOKEN_PATH")
    return address.rstrip("/")


def _ca_of_environment() -> str | bool:
    # Ray reads job logs by another library than the rest, which does not know this variable.
    return os.environ.get("REQUESTS_CA_BUNDLE") or True


def _has_token() -> bool:
    default = Path.home() / ".ray" / "auth_token"
    given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return os.environ.get("RAY_AUTH_MODE", "token") == "token" and (bool(given) or default.is_file())


def _last(text: str) -> str:
    """What a traceback says in the end."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no reason given"

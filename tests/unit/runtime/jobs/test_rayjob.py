"""Status documents as KubeRay 1.7.0 writes them (rayjob_controller.go), read as jobs."""

from __future__ import annotations

from typing import Any

import pytest

from sfumato.runtime.jobs.follow import ended
from sfumato.runtime.jobs.rayjob import read

STARTED = {
    "jobId": "digits-1-x7k2p",
    "rayClusterName": "digits-1-9f8ws",
    "dashboardURL": "digits-1-9f8ws-head-svc.sfumato.svc.cluster.local:8265",
    "startTime": "2026-08-19T21:21:52Z",
    "failed": 0,
    "succeeded": 0,
}
SAID = "Job entrypoint command failed with exit code 3, last available logs (truncated to 20,000 chars):\n"


def item(status: dict[str, Any] | None, **metadata: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"metadata": {"name": "digits-1", **metadata}}
    return made if status is None else {**made, "status": status}


@pytest.mark.parametrize(
    ("status", "expected", "over"),
    [
        (None, "PENDING", False),
        ({"failed": 0, "succeeded": 0}, "PENDING", False),
        ({"jobDeploymentStatus": "Initializing", **STARTED}, "INITIALIZING", False),
        ({"jobDeploymentStatus": "Running", **STARTED}, "RUNNING", False),
        ({"jobDeploymentStatus": "Running", "jobStatus": "RUNNING", **STARTED}, "RUNNING", False),
        ({"jobDeploymentStatus": "Retrying", "jobStatus": "FAILED", **STARTED}, "RETRYING", False),
        ({"jobDeploymentStatus": "Suspended", "jobStatus": ""}, "SUSPENDED", False),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED", **STARTED}, "SUCCEEDED", True),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED", **STARTED}, "STOPPED", True),
        ({"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", **STARTED}, "FAILED", True),
        ({"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded", **STARTED}, "FAILED", True),
        ({"jobDeploymentStatus": "ValidationFailed", "reason": "ValidationFailed"}, "FAILED", True),
    ],
)
def test_states(status: dict[str, Any] | None, expected: str, over: bool) -> None:
    job = read(item(status)).job
    assert (job.status, job.over) == (expected, over)


def test_a_job_that_was_stopped_is_no_success() -> None:
    """The deployment of a job is complete however the job ended."""
    status = {
        "jobDeploymentStatus": "Complete",
        "jobStatus": "STOPPED",
        "message": "Job was intentionally stopped.",
    }
    assert ended(read(item(status)).job) == (
        1,
        "job digits-1 was stopped; the same command resumes from its last checkpoint",
    )


def test_the_exit_status_is_the_jobs_own() -> None:
    failed = {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "message": f"{SAID}Traceback\n  line"}
    job = read(item({**failed, "reason": "AppFailed", **STARTED})).job
    assert job.exit_code == 3 and "\n" not in job.message
    assert ended(job) == (3, "job digits-1 failed (status 3)")
    lost = {"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded", **STARTED}
    assert ended(read(item(lost)).job) == (1, "job digits-1 failed: DeadlineExceeded")


def test_times_and_names() -> None:
    found = read(item({"jobDeploymentStatus": "Complete", **STARTED, "endTime": "2026-08-19T22:22:53Z"}))
    assert found.job.started == 1787174512.0  # date -u -d 2026-08-19T21:21:52Z +%s
    assert found.job.ended is not None and found.job.ended - found.job.started == 3661.0
    assert (found.attempt, found.cluster, found.stage) == ("digits-1-x7k2p", "digits-1-9f8ws", "Complete")
    assert not found.ours
    assert read(item(None, labels={"sfumato.io/run": "digits-12345678"})).ours

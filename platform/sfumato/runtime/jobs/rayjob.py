"""What KubeRay says of a RayJob, in the words of jobs on a Ray cluster.

A RayJob has two states: `jobDeploymentStatus`, of its cluster and its submission, and `jobStatus`, of the job
on that cluster. Written by KubeRay 1.7 (ray-operator/apis/ray/v1/rayjob_types.go).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sfumato.runtime.jobs.cluster import Job
from sfumato.runtime.jobs.manifest import COMMAND_NOTE, RUN_LABEL, TRACKING_NOTE

# Of `jobDeploymentStatus`; the others are shown as they are. A deployment is complete however the job ended.
_STATES = {"Failed": "FAILED", "ValidationFailed": "FAILED", "Running": "RUNNING", "": "PENDING"}
_EXIT_CODE = re.compile(r"failed with exit code (\d+)")
_LONGEST_MESSAGE = 300


@dataclass(frozen=True)
class RayJob:
    """A RayJob as the API server has it."""

    job: Job
    stage: str
    """`jobDeploymentStatus`; empty where no operator has looked at it yet."""
    attempt: str
    """The job's id on its cluster: another one after each retry."""
    cluster: str
    """Name of its RayCluster; empty where there is none yet."""
    ours: bool
    """Whether `sfumato submit` made it."""
    schedule: str = ""
    """The RayCronJob that started it; KubeRay gives such a job none of the schedule's labels."""


def read(item: Mapping[str, Any]) -> RayJob:
    """A RayJob's document, as `kubectl get -o json` prints it."""
    metadata, status = item["metadata"], item.get("status") or {}
    labels, notes = metadata.get("labels") or {}, metadata.get("annotations") or {}
    stage = str(status.get("jobDeploymentStatus") or "")
    message = str(status.get("message") or status.get("reason") or "")
    code = _EXIT_CODE.search(message)
    job = Job(
        name=metadata["name"],
        status=_status(stage, str(status.get("jobStatus") or "")),
        message=(message.strip().splitlines() or [""])[0][:_LONGEST_MESSAGE],
        command=notes.get(COMMAND_NOTE, ""),
        run=labels.get(RUN_LABEL, ""),
        started=_seconds(status.get("startTime")),
        ended=_seconds(status.get("endTime")),
        exit_code=int(code[1]) if code else None,
        tracking=notes.get(TRACKING_NOTE, ""),
    )
    return RayJob(
        job,
        stage,
        attempt=str(status.get("jobId") or ""),
        cluster=str(status.get("rayClusterName") or ""),
        ours=RUN_LABEL in labels,
        schedule=next(
            (o["name"] for o in metadata.get("ownerReferences") or () if o["kind"] == "RayCronJob"), ""
        ),
    )


def read_schedule(item: Mapping[str, Any]) -> Job:
    """A RayCronJob's document, as a job that waits for its time."""
    metadata, spec = item["metadata"], item["spec"]
    notes = metadata.get("annotations") or {}
    last = (item.get("status") or {}).get("lastScheduleTime")
    return Job(
        name=metadata["name"],
        status="SCHEDULED",
        message=f"at {spec['schedule']} {spec.get('timeZone') or 'UTC'}",
        command=notes.get(COMMAND_NOTE, ""),
        run=(metadata.get("labels") or {}).get(RUN_LABEL, ""),
        started=None,
        ended=None,
        exit_code=None,
        tracking=notes.get(TRACKING_NOTE, ""),
        progress=f"at {spec['schedule']} {spec.get('timeZone') or 'UTC'}, last {last or 'never'}",
    )


def _status(stage: str, on_cluster: str) -> str:
    if stage == "Complete":
        return on_cluster or "SUCCEEDED"
    return _STATES.get(stage, stage.upper())


def _seconds(written: str | None) -> float | None:
    return None if not written else datetime.fromisoformat(written).timestamp()

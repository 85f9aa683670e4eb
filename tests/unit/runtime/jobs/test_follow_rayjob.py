"""A RayJob is followed through whatever happens to its pods, its logs and the API server."""

from __future__ import annotations

from typing import Any

import pytest
from kubernetes_api import Cluster
from memory_kubectl import MemoryKubectl

from sfumato.errors import SfumatoError
from sfumato.runtime.jobs import follow_rayjob
from sfumato.runtime.jobs.cluster import Job
from sfumato.runtime.jobs.follow import ended

WAITING = {"jobDeploymentStatus": "Initializing", "jobId": "j-1", "rayClusterName": "c-1"}
RUNNING = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING", "jobId": "j-1"}
RETRYING = {"jobDeploymentStatus": "Retrying", "jobStatus": "FAILED", "jobId": "j-1"}
DONE = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED", "jobId": "j-1"}


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow_rayjob, "_POLL_S", 0.0)


def follow(cluster: Cluster) -> tuple[Job, list[str]]:
    # It is looked at once before it is followed.
    cluster.statuses = [cluster.statuses[0], *cluster.statuses]
    cluster.put("ray.io/v1", "RayJob", "digits")
    said: list[str] = []
    job = follow_rayjob.follow(MemoryKubectl(cluster=cluster), "digits", said.append)
    return job, "".join(said).splitlines()


def test_through_cut_streams_new_submitters_and_new_clusters() -> None:
    second = {"jobId": "j-2"}
    statuses = [WAITING, RUNNING, RUNNING, RUNNING, RETRYING, RUNNING | second, DONE | second]
    streams = [
        "waiting for the head\nsubmitted\nstep 1\nstep",  # cut in the middle of a line
        "waiting for the head\nsubmitted\nstep 1\nstep 2\n",
        "waiting for the head\nstep 1\nstep 2\nstep 3\n",  # of another pod
        "waiting for the head\nsubmitted\nstep 3\n",  # of another cluster
        "waiting for the head\nsubmitted\nstep 3\nlast",
    ]
    job, said = follow(Cluster(statuses=[*statuses], streams=streams))
    assert job.status == "SUCCEEDED"
    assert said == [
        *("job digits: initializing", "job digits: running"),
        *("waiting for the head", "submitted", "step 1", "step 2", "step 3"),
        *("job digits: retrying", "job digits: running"),
        *("waiting for the head", "submitted", "step 3"),
        *("job digits: succeeded", "last"),
    ]


def test_a_short_job_shows_what_it_said() -> None:
    assert follow(Cluster(statuses=[WAITING, DONE], streams=["all of it\n"]))[1][-1] == "all of it"


def test_output_that_may_not_be_read_is_said_once() -> None:
    denied = {("logs", "pods")}
    _, said = follow(Cluster(statuses=[RUNNING, RUNNING, RUNNING, DONE], denied=denied))
    (line,) = (line for line in said if "output" in line)
    assert line == (
        "job digits: its output cannot be read: Error from server (Forbidden): pods/log is forbidden"
    )


def test_an_outage_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(statuses=[RUNNING, RUNNING, DONE], streams=["on it\n"])
    outages = iter([3])

    def sleep(seconds: float) -> None:
        cluster.away = next(outages, cluster.away)

    monkeypatch.setattr(follow_rayjob.time, "sleep", sleep)
    job, said = follow(cluster)
    assert job.status == "SUCCEEDED" and cluster.away == 0 and "on it" in said


def test_after_a_minute_away_there_is_a_way_back(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(statuses=[RUNNING])
    monkeypatch.setattr(follow_rayjob, "PATIENCE_S", 0.01)
    monkeypatch.setattr(follow_rayjob.time, "sleep", lambda seconds: setattr(cluster, "away", 10**9))
    with pytest.raises(
        SfumatoError,
        match=r"^contact with the cluster is lost .*is away.*: sfumato jobs attach digits --kubernetes",
    ):
        follow(cluster)


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        ({}, "does KubeRay run, and watch namespace sfumato"),
        ({"failed": 0, "succeeded": 0}, "does KubeRay run, and watch namespace sfumato"),
        (WAITING, "kubectl -n sfumato describe raycluster,pod -l ray.io/cluster=c-1"),
        ({"jobDeploymentStatus": "Suspended"}, "kubectl -n sfumato get workloads"),
    ],
)
def test_a_job_that_waits_says_for_what(
    monkeypatch: pytest.MonkeyPatch, status: dict[str, Any], hint: str
) -> None:
    monkeypatch.setattr(follow_rayjob, "PATIENCE_S", 0.0)
    _, said = follow(Cluster(statuses=[status, status, status, status, DONE]))
    assert sum(hint in line for line in said) == 1


def test_a_job_that_is_deleted_was_stopped() -> None:
    job, said = follow(Cluster(statuses=[RUNNING, RUNNING, None]))
    assert said[-1] == "job digits: its RayJob was deleted"
    assert ended(job) == (1, "job digits was stopped; the same command resumes from its last checkpoint")

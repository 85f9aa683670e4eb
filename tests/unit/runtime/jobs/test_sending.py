"""`sfumato submit --kubernetes` makes a job whole or not at all, and touches nothing that others made."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from kubernetes_api import Cluster
from memory_kubectl import MemoryKubectl

from sfumato.errors import ConfigError
from sfumato.families.diffusion import Config
from sfumato.runtime.jobs import on_kubernetes
from sfumato.runtime.jobs import parsing as commands
from sfumato.runtime.jobs.cluster import line_of
from sfumato.runtime.jobs.command import Command
from sfumato.runtime.jobs.manifest import Schedule
from sfumato.runtime.jobs.places import OnKubernetes
from sfumato.runtime.jobs.pods import PodSettings
from sfumato.runtime.jobs.submit import SubmitOptions


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    content = {
        "name": "Tiny_Digits",
        "data": {"path": "data/digits", "streams": 24},
        "model": Config.tiny().model_dump(mode="json"),
        "train": {"images": 512, "batch": 144},
        "tracking": {"uri": "http://mlflow:5000"},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    return commands.parse(["run", "tiny.yaml"], trust=False)


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster()
    made.put("v1", "ServiceAccount", "ray-worker")
    made.put("v1", "PersistentVolumeClaim", "runs")
    return made


def send(
    command: Command, cluster: Cluster, name: str | None = None, schedule: Schedule | None = None
) -> str:
    options = SubmitOptions(root="/runs", name=name)
    pods = PodSettings("registry.example.com/sfumato-gpu:0.1.0", "/runs", "runs")
    settings = on_kubernetes.settings_of(
        options, namespace="sfumato", queue=None, token_secret=None, pods=pods, schedule=schedule
    )
    kubectl = MemoryKubectl(cluster=cluster)
    return on_kubernetes.send(command, options, settings, kubectl, project=Path.cwd())


def test_a_job_is_made_listed_and_stopped(command: Command, cluster: Cluster) -> None:
    place = OnKubernetes(MemoryKubectl(cluster=cluster))
    name = send(command, cluster)
    label = f"tiny-digits-{command.digest[:8]}"
    assert name == f"{label}-1"
    job, package = cluster.named("RayJob", name), cluster.named("ConfigMap", name)
    assert job is not None and package is not None
    owner = {"apiVersion": "ray.io/v1", "kind": "RayJob", "name": name, "uid": job["metadata"]["uid"]}
    assert package["metadata"]["ownerReferences"] == [owner], "it is deleted with the job"
    (listed,) = place.jobs()
    assert (listed.name, listed.status, listed.command) == (name, "PENDING", "run tiny.yaml")
    with pytest.raises(
        ConfigError, match=f"job '{name}' at namespace sfumato is working on this run already"
    ):
        send(command, cluster)
    job["status"] = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
    cluster.streams = ["train: started\ntrain: 256 of 512  loss 0.3  80 s left\na remark\n"]
    row = line_of(place.jobs()[0], now=0.0)
    assert (row["progress"], row["mlflow"]) == (
        "train: 256 of 512  loss 0.3  80 s left",
        "http://mlflow:5000",
    )
    times = {"startTime": "2026-08-19T21:21:52Z", "endTime": "2026-08-19T22:22:53Z"}
    job["status"] = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED", **times}
    assert line_of(place.jobs()[0], now=0.0)["time"] == "1:01:01"
    assert send(command, cluster) == f"{label}-2"
    place.stop(name)
    assert cluster.named("RayJob", name) is None and cluster.named("ConfigMap", name) is None


def test_a_schedule_is_made_listed_and_stopped(command: Command, cluster: Cluster) -> None:
    before = dict(cluster.objects)
    place = OnKubernetes(MemoryKubectl(cluster=cluster))
    name = send(command, cluster, schedule=Schedule("0 3 * * *"))
    assert len(name) <= 36 and name.endswith(command.digest[:8])
    assert cluster.named("RayCronJob", name) and not cluster.named("RayJob", name)
    (listed,) = place.jobs()
    assert (listed.status, listed.progress) == ("SCHEDULED", "at 0 3 * * * Etc/UTC, last never")
    with pytest.raises(ConfigError, match=f"'{name}' is a schedule: name one of the jobs"):
        place.job(name)
    send(command, cluster)
    assert {job.status for job in place.jobs()} == {"SCHEDULED", "PENDING"}, "a job may run beside it"
    place.stop(name)
    assert [job.status for job in place.jobs()] == ["PENDING"]
    place.stop(place.jobs()[0].name)
    assert cluster.objects == before
    cluster.denied = {("create", "configmaps")}
    with pytest.raises(ConfigError, match="is forbidden"):
        send(command, cluster, schedule=Schedule("0 3 * * *"))
    assert cluster.objects == before


def started(cluster: Cluster, schedule: str, name: str) -> str:
    """What KubeRay 1.7 makes when the time has come: none of the schedule's labels, and an owner."""
    found = cluster.named("RayCronJob", schedule)
    uid = "of-others" if found is None else found["metadata"]["uid"]
    owner = {"kind": "RayCronJob", "name": schedule, "uid": uid, "controller": True}
    cluster.put(
        "ray.io/v1",
        "RayJob",
        name,
        labels={"ray.io/cronjob-name": schedule},
        ownerReferences=[owner],
    )
    return name


def test_jobs_of_a_schedule_are_listed_and_stopped(command: Command, cluster: Cluster) -> None:
    before = dict(cluster.objects)
    place = OnKubernetes(MemoryKubectl(cluster=cluster))
    nightly = send(command, cluster, schedule=Schedule("0 3 * * *"))
    first, second = (started(cluster, nightly, f"{nightly}-{end}") for end in ("ab1cd", "ef2gh"))
    other = started(cluster, "theirs", "theirs-ij3kl")
    assert {job.name: job.command for job in place.jobs()} == dict.fromkeys(
        (first, second, nightly), str(command)
    )
    assert {job.tracking for job in place.jobs()} == {"http://mlflow:5000"}
    assert place.job(first).name == first
    with pytest.raises(ConfigError, match="was not made by sfumato submit"):
        place.stop(other)
    place.stop(first)
    assert {job.name for job in place.jobs()} == {second, nightly}
    assert cluster.named("ConfigMap", nightly), "the package of later jobs"
    place.stop(nightly)
    assert place.jobs() == [] and [*cluster.objects] == [*before, *(p for p in cluster.objects if other in p)]


def test_a_schedule_does_not_wait_in_a_queue() -> None:
    pods = PodSettings("registry.example.com/sfumato-gpu:0.1.0", "/runs", "runs")
    options = SubmitOptions(root="/runs")
    with pytest.raises(ConfigError, match="--queue team with --schedule"):
        on_kubernetes.settings_of(
            options,
            namespace="sfumato",
            queue="team",
            token_secret=None,
            pods=pods,
            schedule=Schedule("0 3 * * *"),
        )


def test_names_of_others_are_taken_and_theirs_to_delete(command: Command, cluster: Cluster) -> None:
    cluster.put("ray.io/v1", "RayJob", "sfumato-train")
    cluster.put("v1", "ConfigMap", "redis")
    before = dict(cluster.objects)
    with pytest.raises(ConfigError, match="job name 'sfumato-train' is taken at namespace sfumato"):
        send(command, cluster, "sfumato-train")
    with pytest.raises(ConfigError, match=r"configmap/redis is in namespace sfumato already.*--name"):
        send(command, cluster, "redis")
    cluster.denied = {("get", "configmaps")}
    with pytest.raises(ConfigError, match="ConfigMap/redis already exists"):
        send(command, cluster, "redis")
    place = OnKubernetes(MemoryKubectl(cluster=cluster))
    assert place.jobs() == []
    with pytest.raises(ConfigError, match="'sfumato-train' was not made by sfumato submit: delete it with"):
        place.stop("sfumato-train")
    assert cluster.objects == before, "nothing was made, changed or deleted"


@pytest.mark.parametrize("kind", ["configmaps", "rayjobs"])
def test_half_a_job_is_taken_back(command: Command, cluster: Cluster, kind: str) -> None:
    before = dict(cluster.objects)
    cluster.denied = {("create", kind)}
    with pytest.raises(ConfigError, match="is forbidden"):
        send(command, cluster)
    assert cluster.objects == before


def test_half_a_job_that_stays_is_named(command: Command, cluster: Cluster) -> None:
    cluster.denied = {("create", "configmaps"), ("delete", "rayjobs")}
    with pytest.raises(ConfigError, match=r"could not be deleted .*: kubectl -n sfumato delete rayjob half"):
        send(command, cluster, "half")


@pytest.mark.parametrize("missing", ["serviceaccount/ray-worker", "persistentvolumeclaim/runs"])
def test_what_pods_would_wait_for_is_looked_for(command: Command, cluster: Cluster, missing: str) -> None:
    kind = missing.partition("/")[0]
    cluster.objects = {k: found for k, found in cluster.objects.items() if found["kind"].lower() != kind}
    with pytest.raises(ConfigError, match=f"namespace sfumato has no {missing}: create it, or name another"):
        send(command, cluster)
    assert cluster.named("RayJob", f"tiny-digits-{command.digest[:8]}-1") is None
    cluster.denied = {("get", f"{kind}s")}
    send(command, cluster)  # who may not look finds out later

"""Overlays that are applied again, side by side, or deleted, and whether one machine has room for them."""

from __future__ import annotations

import re
from typing import Any

import manifests
import pytest
from manifests import FOLDER, Manifest, containers, label, of_kind, overlays, pods, rendered

pytestmark = pytest.mark.skipif(not manifests.HAVE_KUSTOMIZE, reason=manifests.NO_KUSTOMIZE)

JOBS = [overlay for overlay in overlays() if overlay.endswith(("/job", "/nightly"))]
_MIB = {"Ki": 1 / 1024, "Mi": 1.0, "Gi": 1024.0, "Ti": 1024.0**2, "": 1 / 1024**2}


def names(overlay: str) -> set[str]:
    return {label(manifest) for manifest in rendered(overlay)}


@pytest.mark.parametrize("job", JOBS)
def test_deleting_a_job_deletes_nothing_that_stays(job: str) -> None:
    base = job.split("/", maxsplit=1)[0]
    assert names(job) & names(base) == set()
    kinds = {manifest["kind"] for manifest in rendered(job)}
    assert kinds <= {"RayJob", "RayCronJob", "ConfigMap"}, "nothing that holds data"


def test_jobs_of_one_cluster_do_not_replace_one_another() -> None:
    side_by_side = [job for job in JOBS if not job.startswith("local/")]
    assert len(side_by_side) == 3
    taken = [name for job in side_by_side for name in names(job)]
    assert len(taken) == len(set(taken)), taken


@pytest.mark.parametrize("job", JOBS)
def test_a_job_reads_the_recipe_of_its_own_overlay(job: str) -> None:
    (config,) = of_kind(rendered(job), "ConfigMap")
    (found,) = of_kind(rendered(job), "RayJob", "RayCronJob")
    spec = found["spec"].get("jobTemplate", found["spec"])["rayClusterSpec"]
    volumes = spec["headGroupSpec"]["template"]["spec"]["volumes"]
    mounted = [volume["configMap"]["name"] for volume in volumes if "configMap" in volume]
    assert mounted == [config["metadata"]["name"]]


def test_applying_a_queued_job_again_leaves_it_running() -> None:
    """kubectl sends the fields that the manifest sets and that differ: `suspend` is Kueue's to change."""
    (job,) = of_kind(rendered("gpu/job"), "RayJob")
    admitted = {**job["spec"], "suspend": False}
    patch = {key: value for key, value in job["spec"].items() if admitted[key] != value}
    assert patch == {}


def test_every_priority_class_of_the_queue_is_used() -> None:
    offered = {m["metadata"]["name"] for m in of_kind(rendered("gpu"), "WorkloadPriorityClass")}
    jobs = [m for job in JOBS for m in of_kind(rendered(job), "RayJob")]
    used = {job["metadata"]["labels"].get("kueue.x-k8s.io/priority-class") for job in jobs}
    assert offered == used - {None}


def test_one_machine_has_room_for_the_idle_cluster_and_a_job() -> None:
    """Beside Kubernetes itself on kind, and KubeRay (requests of their own manifests)."""
    cpus, memory = 0.95 + 0.1, 290.0 + 512.0
    for manifest in [*rendered("local"), *rendered("local/job")]:
        for replicas, resources in _requests(manifest):
            cpus += replicas * _cpus(resources["cpu"])
            memory += replicas * _mib(resources["memory"])
    assert cpus <= 8.0
    assert memory <= 15.0 * 1024, "a virtual machine of 16 GiB has less than that to give"


def _requests(manifest: Manifest) -> list[tuple[int, Manifest]]:
    """(pods, requests of one): standing groups as idle, those of a job at their largest."""
    idle = manifest["kind"] == "RayCluster"
    spec: Any = manifest.get("spec", {})
    cluster = spec.get("rayClusterSpec", spec)
    found = []
    if cluster.get("enableInTreeAutoscaling"):
        found.append((1, cluster["autoscalerOptions"]["resources"]["requests"]))
    groups = {group["groupName"]: group for group in cluster.get("workerGroupSpecs", [])}
    for path, pod in pods(manifest):
        group = groups.get(path.split(".")[-2]) if "workerGroupSpecs" in path else None
        count = 1 if group is None else group["minReplicas" if idle else "maxReplicas"]
        found += [(count, container["resources"]["requests"]) for container in containers(pod)]
    return found


def _cpus(amount: str | int) -> float:
    text = str(amount)
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def _mib(amount: str) -> float:
    matched = re.fullmatch(r"([\d.]+)(Ki|Mi|Gi|Ti|)", str(amount))
    assert matched is not None, amount
    return float(matched[1]) * _MIB[matched[2]]


def test_the_way_to_delete_comes_in_an_order_that_ends() -> None:
    """The operator clears a cluster's state from Redis, while that lives."""
    text = (FOLDER / "README.md").read_text()
    clusters = text.index("delete rayjob,raycronjob,raycluster --all")
    assert clusters < text.index("kubectl delete -k k8s/overlays/local\n")
    assert "gcs-ft-redis-cleanup-finalizer" in text

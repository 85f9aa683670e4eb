"""Manifests against schemas that allow no unknown field, and against what operators refuse beyond them."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import kuberay_rules
import kubernetes_validate
import manifests
import pytest
from crd_schemas import Definitions
from manifests import Manifest, label, of_kind, rendered, written

CLUSTER_VERSION = "1.32"
CUSTOM_GROUPS = ("ray.io/", "kueue.x-k8s.io/", "monitoring.coreos.com/")
RAY_KINDS = ("RayCluster", "RayJob", "RayCronJob")

needs_kustomize = pytest.mark.skipif(not manifests.HAVE_KUSTOMIZE, reason=manifests.NO_KUSTOMIZE)


@pytest.fixture(scope="module")
def definitions() -> Definitions:
    folder = Path(os.environ.get("SFUMATO_SHARED_CRDS", manifests.ROOT.parent / "shared" / "crds"))
    if not folder.is_dir():
        pytest.skip(
            f"no custom resource definitions in {folder}: set SFUMATO_SHARED_CRDS to a folder of them"
        )
    return Definitions(folder)


def is_custom(manifest: Manifest) -> bool:
    return str(manifest["apiVersion"]).startswith(CUSTOM_GROUPS)


def check_core(manifest: Manifest) -> None:
    assert _core_problem(json.dumps(manifest)) is None, label(manifest)


@cache  # overlays share most of what they hold
def _core_problem(manifest: str) -> str | None:
    try:
        kubernetes_validate.validate(json.loads(manifest), CLUSTER_VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        return str(error)
    return None


def some_cluster() -> Manifest:
    return copy.deepcopy(written()["base/cluster/raycluster.yaml"][0])


@pytest.mark.parametrize("name", sorted(written()))
def test_files_hold_what_the_schemas_allow(name: str, definitions: Definitions) -> None:
    for manifest in written()[name]:
        if is_custom(manifest):
            assert definitions.problems(manifest) == [], label(manifest)


@pytest.mark.parametrize("name", sorted(written()))
def test_core_kinds_in_files(name: str) -> None:
    for manifest in written()[name]:
        if not is_custom(manifest):
            check_core(manifest)


@needs_kustomize
@pytest.mark.parametrize("overlay", manifests.overlays())
def test_overlays_hold_what_the_schemas_allow(overlay: str, definitions: Definitions) -> None:
    for manifest in rendered(overlay):
        if is_custom(manifest):
            assert definitions.problems(manifest) == [], label(manifest)


@needs_kustomize
@pytest.mark.parametrize("overlay", manifests.overlays())
def test_core_kinds_in_overlays(overlay: str) -> None:
    found = rendered(overlay)
    assert of_kind(found, *RAY_KINDS) or overlay.endswith("platform")
    for manifest in found:
        if not is_custom(manifest):
            check_core(manifest)


@needs_kustomize
@pytest.mark.parametrize("overlay", manifests.overlays())
def test_the_operators_would_take_every_overlay(overlay: str) -> None:
    for manifest in of_kind(rendered(overlay), *RAY_KINDS):
        assert kuberay_rules.problems(manifest) == [], label(manifest)


def test_the_operator_would_take_the_cluster_as_it_is_written() -> None:
    assert kuberay_rules.problems(some_cluster()) == []


def _misspelt(path: str, name: str, wrong: str) -> Callable[[Manifest], None]:
    def change(manifest: Manifest) -> None:
        node: Any = manifest["spec"]
        for part in path.split(".") if path else ():
            node = node[int(part)] if part.isdigit() else node[part]
        node[wrong] = node.pop(name)

    return change


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (_misspelt("", "enableInTreeAutoscaling", "enableInTreeAutoscalin"), "enableInTreeAutoscalin"),
        (_misspelt("autoscalerOptions", "idleTimeoutSeconds", "idleTimeout"), "idleTimeout"),
        (_misspelt("workerGroupSpecs.1", "maxReplicas", "maxReplica"), "maxReplica"),
        (
            _misspelt("workerGroupSpecs.1.template.spec", "priorityClassName", "priorityClass"),
            "priorityClass",
        ),
        (
            _misspelt(
                "headGroupSpec.template.spec.containers.0.securityContext", "capabilities", "capabilites"
            ),
            "capabilites",
        ),
        (lambda m: m["spec"]["autoscalerOptions"].update(version="v3"), "v3"),
        (lambda m: m["spec"]["workerGroupSpecs"][0].update(minReplicas="none"), "none"),
    ],
)
def test_a_typo_in_a_custom_resource_is_found(
    change: Callable[[Manifest], None], where: str, definitions: Definitions
) -> None:
    cluster = some_cluster()
    change(cluster)
    assert any(where in problem for problem in definitions.problems(cluster))


def test_a_kind_without_definition_is_no_pass(definitions: Definitions) -> None:
    cluster = {**some_cluster(), "apiVersion": "ray.io/v2"}
    assert definitions.problems(cluster) == ["ray.io/v2 RayCluster: no definition serves it"]


def test_a_typo_in_a_core_kind_is_found() -> None:
    deployment = copy.deepcopy(of_kind(written()["base/platform/mlflow.yaml"], "Deployment")[0])
    deployment["spec"]["template"]["spec"]["containers"][0]["readOnlyRootFs"] = True
    with pytest.raises(kubernetes_validate.ValidationError, match="readOnlyRootFs"):
        kubernetes_validate.validate(deployment, CLUSTER_VERSION, strict=True)


def job(**changes: Any) -> Manifest:
    spec = {
        "entrypoint": "sfumato run recipe.yaml",
        "shutdownAfterJobFinishes": True,
        "rayClusterSpec": some_cluster()["spec"],
        **changes,
    }
    return {
        "kind": "RayJob",
        "metadata": {"name": "job"},
        "spec": {k: v for k, v in spec.items() if v is not None},
    }


def test_a_plain_job_is_taken() -> None:
    assert kuberay_rules.problems(job()) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"submissionMode": "Sidecar"}, "submissionMode: 'Sidecar' is none of"),
        ({"submissionMode": "SidecarMode", "submitterConfig": {}}, "submitterConfig: not in SidecarMode"),
        ({"submissionMode": "InteractiveMode", "backoffLimit": 1}, "backoffLimit: not in InteractiveMode"),
        ({"shutdownAfterJobFinishes": False, "suspend": True}, "suspend: only with"),
        (
            {"shutdownAfterJobFinishes": False, "ttlSecondsAfterFinished": 1},
            "ttlSecondsAfterFinished: only with",
        ),
        ({"rayClusterSpec": None}, "one of rayClusterSpec and clusterSelector"),
        (
            {"clusterSelector": {"ray.io/cluster": "a"}, "backoffLimit": 2},
            "clusterSelector: excludes backoffLimit",
        ),
        ({"clusterSelector": {"name": "a"}}, "clusterSelector: names no ray.io/cluster"),
        ({"deletionStrategy": {"onSuccess": {}}}, "deletionStrategy: either"),
        ({"activeDeadlineSeconds": 0}, "activeDeadlineSeconds: positive"),
    ],
)
def test_what_excludes_what_in_a_job(changes: dict[str, Any], expected: str) -> None:
    assert [line for line in kuberay_rules.problems(job(**changes)) if line.startswith(expected)]


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("rayVersion", "2.51.0", "authOptions: token needs"),
        ("gcsFaultToleranceOptions.backend", "rocksdb", "backend rocksdb"),
        ("headGroupSpec.template.spec.restartPolicy", "Always", "head: restartPolicy"),
        ("headGroupSpec.resources", {"CPU": "1"}, "head: resources"),
        ("headGroupSpec.rayStartParams.num-cpus", 0, "head: rayStartParams: strings"),
        ("workerGroupSpecs.1.minReplicas", 9, "gpu: minReplicas 9 is above"),
        ("workerGroupSpecs.0.suspend", True, "cpu: suspend"),
        ("enableInTreeAutoscaling", False, None),
        ("networkPolicy", {}, "networkPolicy: needs the feature gate"),
    ],
)
def test_what_excludes_what_in_a_cluster(path: str, value: Any, expected: str | None) -> None:
    cluster = some_cluster()
    *parents, last = path.split(".")
    node: Any = cluster["spec"]
    for part in parents:
        node = node[int(part)] if part.isdigit() else node[part]
    node[last] = value
    found = kuberay_rules.problems(cluster)
    assert found == [] if expected is None else any(line.startswith(expected) for line in found)


def test_a_queued_job_may_not_grow() -> None:
    queued = job()
    queued["metadata"]["labels"] = {kuberay_rules.QUEUE: "training"}
    assert any("does not scale by itself" in line for line in kuberay_rules.problems(queued))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"schedule": "TZ=Asia/Tokyo 0 1 * * *"}, "schedule"), ({"timeZone": "Mars/Olympus"}, "timeZone")],
)
def test_a_nightly_job_has_a_time_that_exists(changes: dict[str, Any], expected: str) -> None:
    nightly = {"kind": "RayCronJob", "metadata": {"name": "nightly"}}
    nightly["spec"] = {
        "schedule": "30 1 * * *",
        "timeZone": "Etc/UTC",
        "jobTemplate": job()["spec"],
        **changes,
    }
    assert any(line.startswith(expected) for line in kuberay_rules.problems(nightly))

"""What every pod keeps to, and that all the names in the manifests lead somewhere."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import manifests
import pytest
import yaml
from manifests import FOLDER, ROOT, Manifest, containers, label, of_kind, overlays, pods, rendered, written

import sfumato
from sfumato import recipe as recipes
from sfumato.runtime.cluster.ray_cluster import cpus_to_train

needs_kustomize = pytest.mark.skipif(not manifests.HAVE_KUSTOMIZE, reason=manifests.NO_KUSTOMIZE)
JOBS = ("gpu/job", "gpu/nightly", "local/job", "spot/job")
# In files, images that kustomize gives their registry and tag.
OWN_IMAGES = {"sfumato-cpu", "sfumato-gpu"}
SECRET_NAME = re.compile(r"PASSWORD|TOKEN|SECRET|CREDENTIAL|ACCESS_KEY|_AUTH$|_URI$", re.IGNORECASE)


def sources() -> list[str]:
    """Files everywhere; overlays too where they can be rendered."""
    return [*sorted(written()), *(overlays() if manifests.HAVE_KUSTOMIZE else [])]


def content(source: str) -> list[Manifest]:
    return written()[source] if source in written() else rendered(source)


@cache
def make_secrets() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_secrets", FOLDER / "make_secrets.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def insecurities(pod: Manifest) -> list[str]:
    """Where a pod falls short of the level `restricted`, and of a root file system that nobody writes to."""
    spec, found = pod["spec"], []
    outer = spec.get("securityContext", {})
    if outer.get("runAsNonRoot") is not True or outer.get("runAsUser", 0) == 0:
        found.append("may run as root")
    if outer.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        found.append("no seccomp profile")
    found += [name for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
    found += ["hostPath" for volume in spec.get("volumes", []) if "hostPath" in volume]
    for container in containers(pod):
        inner = container.get("securityContext", {})
        expected = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True}
        found += [f"{container['name']}: {k}" for k, v in expected.items() if inner.get(k) is not v]
        if inner.get("capabilities") != {"drop": ["ALL"]}:
            found.append(f"{container['name']}: keeps capabilities")
        if inner.get("privileged") or inner.get("runAsUser", 1) == 0:
            found.append(f"{container['name']}: privileged, or root")
    return found


def boundless(resources: Manifest) -> list[str]:
    """Which of CPU and memory has no request or no limit."""
    return [
        f"{side}.{name}"
        for side in ("requests", "limits")
        for name in ("cpu", "memory")
        if name not in resources.get(side, {})
    ]


def tag_problem(image: str) -> str | None:
    name, _, tag = image.rpartition(":")
    if image in OWN_IMAGES:
        return "kustomize did not set its tag"
    if not name or "/" in tag or tag in ("latest", "nightly", "main"):
        return "no fixed tag"
    return None


def plain_secrets(node: Any, path: str = "") -> list[str]:
    """Places where something that sounds secret has a value of its own, or an address a password."""
    if isinstance(node, list):
        return [line for i, item in enumerate(node) for line in plain_secrets(item, f"{path}[{i}]")]
    if isinstance(node, str):
        return [path] if re.search(r"://[^/\s:]+:[^/\s@]+@", node) else []
    if not isinstance(node, dict):
        return []
    found = [line for key, value in node.items() for line in plain_secrets(value, f"{path}.{key}")]
    if isinstance(node.get("name"), str) and SECRET_NAME.search(node["name"]) and node.get("value"):
        found.append(f"{path}: {node['name']}")
    return found


@pytest.mark.parametrize("source", sources())
def test_no_pod_runs_as_root_or_may_become_it(source: str) -> None:
    for manifest in content(source):
        for path, pod in pods(manifest):
            assert insecurities(pod) == [], path


@pytest.mark.parametrize("source", sources())
def test_no_container_is_without_requests_and_limits(source: str) -> None:
    for manifest in content(source):
        for path, pod in pods(manifest):
            for container in containers(pod):
                assert boundless(container.get("resources", {})) == [], f"{path} {container['name']}"


@pytest.mark.parametrize("source", sources())
def test_no_secret_lies_in_the_open(source: str) -> None:
    for manifest in content(source):
        assert manifest["kind"] != "Secret", label(manifest)
        assert plain_secrets(manifest) == [], label(manifest)


@pytest.mark.parametrize("source", sources())
def test_every_image_has_a_fixed_tag(source: str) -> None:
    for manifest in content(source):
        for path, pod in pods(manifest):
            for container in containers(pod):
                image = container["image"]
                if source not in written() or image not in OWN_IMAGES:
                    assert tag_problem(image) is None, f"{path}: {image}"


@pytest.mark.parametrize("source", sources())
def test_mounts_have_volumes_and_ray_can_write_where_it_must(source: str) -> None:
    for manifest in content(source):
        for path, pod in pods(manifest):
            declared = {volume["name"] for volume in pod["spec"].get("volumes", [])}
            declared |= {
                claim["metadata"]["name"] for claim in manifest["spec"].get("volumeClaimTemplates", [])
            }
            for container in containers(pod):
                mounts = {mount["mountPath"]: mount["name"] for mount in container.get("volumeMounts", [])}
                assert set(mounts.values()) <= declared, path
                if container["name"].startswith("ray-"):
                    assert "/tmp" in mounts, f"{path}: Ray's session folder is in /tmp"


def test_the_policies_find_what_they_are_for() -> None:
    """Each of them, on a pod that breaks them all."""
    container = {"name": "a", "image": "redis:latest", "securityContext": {"privileged": True}}
    pod = {"spec": {"containers": [container], "hostNetwork": True, "volumes": [{"hostPath": {}}]}}
    assert len(insecurities(pod)) == 8
    assert boundless({"requests": {"cpu": 1}}) == ["requests.memory", "limits.cpu", "limits.memory"]
    assert [tag_problem(image) for image in ("redis:latest", "redis", "host:5000/redis")] == [
        "no fixed tag"
    ] * 3
    assert tag_problem("host:5000/redis:7.4.6") is None
    assert plain_secrets({"env": [{"name": "DB_PASSWORD", "value": "x"}]}) == [".env[0]: DB_PASSWORD"]
    assert plain_secrets({"data": {"uri": "postgresql://me:secret@host/db"}}) == [".data.uri"]
    assert plain_secrets({"env": [{"name": "DB_PASSWORD", "valueFrom": {}}]}) == []


# By field: the kind that it refers to, and the field inside it that has the name ("": it is the name).
REFERENCES = {
    "secretKeyRef": ("Secret", "name"),
    "secretRef": ("Secret", "name"),
    "secret": ("Secret", "secretName"),
    "authOptions": ("Secret", "secretName"),
    "configMapKeyRef": ("ConfigMap", "name"),
    "configMapRef": ("ConfigMap", "name"),
    "configMap": ("ConfigMap", "name"),
    "persistentVolumeClaim": ("PersistentVolumeClaim", "claimName"),
    "serviceAccountName": ("ServiceAccount", ""),
    "priorityClassName": ("PriorityClass", ""),
}


def _references(node: Any) -> list[tuple[str, str, set[str]]]:
    """(kind, name, keys) of all that a manifest refers to and cannot do without."""
    if isinstance(node, list):
        return [found for item in node for found in _references(item)]
    if not isinstance(node, dict):
        return []
    found = [reference for value in node.values() for reference in _references(value)]
    for field in REFERENCES.keys() & node.keys():
        (kind, name), value = REFERENCES[field], node[field]
        if not name:
            found.append((kind, value, set()))
        elif not value.get("optional"):
            keys = {item["key"] for item in [value, *value.get("items", [])] if "key" in item}
            found.append((kind, value[name], keys | ({"auth_token"} if field == "authOptions" else set())))
    return found


@needs_kustomize
@pytest.mark.parametrize("overlay", [o for o in overlays() if not o.endswith(("cluster", "platform"))])
def test_every_name_leads_somewhere(overlay: str) -> None:
    base = overlay.split("/", maxsplit=1)[0]
    found = [*rendered(overlay), *(rendered(base) if overlay != base else [])]
    there = {(m["kind"], m["metadata"]["name"]): m for m in found}
    cloud = {"SFUMATO_DATABASE_URI": "postgresql://me:pass@db.example.com:5432/mlflow"}
    secrets = make_secrets().local() if base == "local" else make_secrets().cloud(cloud)
    for manifest in found:
        for kind, name, keys in _references(manifest.get("spec", {})):
            where = f"{label(manifest)}: {kind} {name}"
            if kind == "Secret":
                assert keys <= secrets.get(name, {}).keys() and name in secrets, where
            else:
                assert (kind, name) in there, where


@needs_kustomize
@pytest.mark.parametrize("overlay", ["gpu", "local", "spot"])
def test_services_and_network_policies_select_pods_that_there_are(overlay: str) -> None:
    found = [m for name in (overlay, f"{overlay}/job") for m in rendered(name)]
    labels = [pod.get("metadata", {}).get("labels", {}) for m in found for _, pod in pods(m)]
    # KubeRay adds these to the pods that it makes.
    labels += [{"ray.io/is-ray-node": "yes", "ray.io/node-type": kind} for kind in ("head", "worker")]
    labels += [{"ray.io/node-type": "redis-cleanup"}]
    for manifest in of_kind(found, "Service", "NetworkPolicy"):
        for wanted in _selectors(manifest["spec"]):
            assert any(wanted.items() <= pod.items() for pod in labels), f"{label(manifest)}: {wanted}"


def _selectors(spec: Manifest) -> list[dict[str, str]]:
    """The labels by which a Service or NetworkPolicy looks for pods of this namespace."""
    if "selector" in spec:
        return [spec["selector"]]
    peers = [
        peer
        for rule in [*spec.get("ingress", []), *spec.get("egress", [])]
        for peer in [*rule.get("from", []), *rule.get("to", [])]
        if "podSelector" in peer and "namespaceSelector" not in peer
    ]
    return [where["podSelector"].get("matchLabels", {}) for where in [spec, *peers]]


@needs_kustomize
@pytest.mark.parametrize("overlay", ["gpu", "local", "spot"])
def test_nothing_comes_in_unless_a_policy_says_so(overlay: str) -> None:
    policies = {p["metadata"]["name"]: p["spec"] for p in of_kind(rendered(overlay), "NetworkPolicy")}
    assert policies["deny-all"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for name, spec in policies.items():
        for rule in spec.get("ingress", []):
            assert rule.get("from"), f"{name} lets anybody in"
            assert rule.get("ports") or name == "ray-nodes", f"{name} opens every port"
    namespace = of_kind(rendered(overlay), "Namespace")[0]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def _clusters(manifest: Manifest) -> Manifest:
    spec = manifest["spec"]
    found = spec.get("jobTemplate", spec).get("rayClusterSpec", spec)
    assert isinstance(found, dict)
    return found


@needs_kustomize
@pytest.mark.parametrize("overlay", JOBS)
def test_a_job_has_the_cluster_of_its_overlay_and_no_other(overlay: str) -> None:
    found = rendered(overlay)
    assert not of_kind(found, "RayCluster", "PodDisruptionBudget")
    (job,) = of_kind(found, "RayJob", "RayCronJob")
    standing = of_kind(rendered(overlay.split("/", maxsplit=1)[0]), "RayCluster")[0]["spec"]
    own = _clusters(job)
    for group, original in zip(own["workerGroupSpecs"], standing["workerGroupSpecs"], strict=False):
        assert group["template"] == original["template"]
    mounts = own["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert {"name": "recipe", "mountPath": "/recipes", "readOnly": True} in mounts
    assert own["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    submitter = next(pod for path, pod in pods(job) if "submitter" in path)
    assert submitter["spec"]["containers"][0]["image"].startswith("registry.example.com/sfumato-cpu:")


@needs_kustomize
@pytest.mark.parametrize("overlay", JOBS)
def test_a_jobs_recipe_is_whole_and_fits_its_cluster(overlay: str, tmp_path: Path) -> None:
    found = rendered(overlay)
    (config,) = of_kind(found, "ConfigMap")
    text = config["data"]["recipe.yaml"]
    assert "/opt/sfumato/" in text, "the image keeps the project's recipes there"
    path = tmp_path / "recipe.yaml"
    path.write_text(text.replace("/opt/sfumato", str(ROOT)))
    recipe = recipes.load(path)
    recipe.check()
    assert recipe.storage == "/runs" and recipe.tracking.uri == "http://mlflow:5000"
    cpus, gpus = 0.0, 0
    for group in _clusters(of_kind(found, "RayJob", "RayCronJob")[0])["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        cpus += group["maxReplicas"] * float(limits["cpu"])
        gpus += group["maxReplicas"] * int(limits.get("nvidia.com/gpu", 0))
    assert cpus_to_train(recipe) <= cpus
    assert recipe.parallel.workers * recipe.parallel.gpus_per_worker <= gpus


@needs_kustomize
def test_a_queued_job_asks_for_what_it_will_use() -> None:
    (job,) = of_kind(rendered("gpu/job"), "RayJob")
    queues = of_kind(rendered("gpu"), "LocalQueue", "WorkloadPriorityClass")
    labels = job["metadata"]["labels"]
    for name in ("queue-name", "priority-class"):
        assert labels[f"kueue.x-k8s.io/{name}"] in {queue["metadata"]["name"] for queue in queues}
    for group in _clusters(job)["workerGroupSpecs"]:
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] > 0


def test_versions_are_those_of_the_package() -> None:
    locked = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    cluster = written()["base/cluster/raycluster.yaml"][0]
    assert cluster["spec"]["rayVersion"] == locked["ray"]
    for name in ("cluster", "platform"):
        kustomization = yaml.safe_load((FOLDER / "base" / name / "kustomization.yaml").read_text())
        assert {image["newTag"] for image in kustomization["images"]} == {sfumato.__version__}


def _run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / "make_secrets.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_secrets_are_fresh_each_time_and_whole() -> None:
    first, second = (json.loads(_run("--local").stdout)["items"] for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert one["kind"] == "Secret" and one["metadata"]["namespace"] == "sfumato"
        different = {key for key in one["stringData"] if one["stringData"][key] != other["stringData"][key]}
        assert different >= set(one["stringData"]) - {"username"}, one["metadata"]["name"]
    by_name = {item["metadata"]["name"]: item["stringData"] for item in first}
    assert by_name["postgresql"]["password"] in by_name["mlflow"]["backend-store-uri"]


def test_accounts_have_a_database_of_their_own_and_percent_signs_survive() -> None:
    import configparser

    uri = "postgresql://me:a%2Fb@db.example.com:5432/mlflow"
    secrets = make_secrets().cloud({"SFUMATO_DATABASE_URI": uri})
    config = configparser.ConfigParser()
    config.read_string(secrets["mlflow"]["basic_auth.ini"])
    server = "postgresql+psycopg2://me:a%2Fb@db.example.com:5432"
    assert config["mlflow"]["database_uri"] == f"{server}/mlflow_auth"
    assert secrets["mlflow"]["backend-store-uri"] == f"{server}/mlflow"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "SFUMATO_DATABASE_URI has to be set"),
        ({"SFUMATO_DATABASE_URI": "mysql://a:b@c/d"}, "SFUMATO_DATABASE_URI has to be set"),
        (
            {"SFUMATO_DATABASE_URI": "postgresql://a:b@c/d", "AWS_ACCESS_KEY_ID": "x"},
            "one is set alone",
        ),
    ],
)
def test_secrets_need_an_address(environment: dict[str, str], expected: str) -> None:
    done = _run(**environment)
    assert done.returncode == 2 and done.stdout == ""
    assert expected in done.stderr and done.stderr.count("\n") == 1


# Of exporters beside Ray: Kueue, the kubelet, and Ray's autoscaler, whose names Ray's own dashboards use.
OTHER_METRICS = {
    "kueue_pending_workloads",
    "kueue_admission_wait_time_seconds_bucket",
    "kubelet_volume_stats_available_bytes",
    "kubelet_volume_stats_capacity_bytes",
}


def _expressions() -> list[str]:
    folder = FOLDER / "components" / "monitoring"
    boards = [json.loads(path.read_text()) for path in sorted((folder / "dashboards").glob("*.json"))]
    found = [target["expr"] for board in boards for panel in board["panels"] for target in panel["targets"]]
    (rules,) = written()["components/monitoring/rules.yaml"]
    return found + [rule["expr"] for group in rules["spec"]["groups"] for rule in group["rules"]]


def test_dashboards_and_alerts_ask_for_metrics_that_there_are() -> None:
    import ray

    from sfumato.runtime.training import prometheus

    sources = (Path(ray.__file__).parent / "dashboard" / "modules" / "metrics" / "dashboards").glob("*.py")
    known = set(re.findall(r"\b(?:ray|autoscaler)_\w+", "\n".join(path.read_text() for path in sources)))
    known |= {f"ray_{name}" for name in prometheus.NAMES} | OTHER_METRICS
    asked = {
        name
        for expression in _expressions()
        for name in re.findall(r"\b(?:ray|autoscaler|kueue|kubelet)_\w+(?=[{\[]|\)|$)", expression)
        if name not in ("ray_io_cluster", "ray_io_group")
    }
    assert len(asked) > 15 and asked <= known, asked - known

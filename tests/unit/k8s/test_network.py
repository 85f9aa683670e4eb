"""The policies of the namespace, evaluated for the pods of a cluster and of jobs: who reaches whom."""

from __future__ import annotations

from typing import Any

import manifests
import pytest
from manifests import Manifest, of_kind, pods, rendered
from network_policies import End, allows, selects

pytestmark = pytest.mark.skipif(not manifests.HAVE_KUSTOMIZE, reason=manifests.NO_KUSTOMIZE)

BUCKET = End(address="52.219.0.1")  # somewhere on the internet
API = End(address="10.96.0.1")
OPERATOR = End({"app.kubernetes.io/name": "kuberay"}, namespace="kuberay-system")
STRANGER = End({"app": "other"}, namespace="default")
DNS = End({"k8s-app": "kube-dns"}, namespace="kube-system")


def policies(overlay: str) -> list[Manifest]:
    return of_kind(rendered(overlay), "NetworkPolicy")


def of_ray(template: Manifest, kind: str) -> End:
    """A pod as KubeRay makes it: the template's labels, and the operator's own."""
    labels = template.get("metadata", {}).get("labels", {})
    return End({**labels, "ray.io/is-ray-node": "yes", "ray.io/node-type": kind})


def ends(overlay: str) -> dict[str, End]:
    """The pods of an overlay, and of its job, by what they do."""
    found: dict[str, End] = {}
    for manifest in [*rendered(overlay), *rendered(f"{overlay}/job")]:
        for path, pod in pods(manifest):
            if "headGroupSpec" in path:
                found[f"{manifest['kind']} head"] = of_ray(pod, "head")
            elif "workerGroupSpecs" in path:
                found[f"{manifest['kind']} {path.split('.')[-2]}"] = of_ray(pod, "worker")
            elif "submitter" in path:
                found["submitter"] = End(pod["metadata"]["labels"])
            else:
                found[manifest["metadata"]["name"]] = End(pod["metadata"]["labels"])
    return found


def nodes(found: dict[str, End]) -> list[End]:
    return [end for name, end in found.items() if name.startswith("Ray")]


@pytest.mark.parametrize("overlay", ["gpu", "local", "spot"])
def test_ray_reaches_what_it_works_with(overlay: str) -> None:
    rules, found = policies(overlay), ends(overlay)
    heads = [end for name, end in found.items() if name.endswith("head")]
    assert len(heads) == 2 and len(nodes(found)) >= 4
    for node in nodes(found):
        assert allows(rules, node, DNS, 53, "UDP")
        assert allows(rules, node, found["mlflow"], 5000)
        assert allows(rules, node, BUCKET, 443)
        assert all(allows(rules, node, other, 10002) for other in nodes(found)), "raylets choose their ports"
    for head in heads:
        assert allows(rules, found["submitter"], head, 8265)
        assert allows(rules, OPERATOR, head, 8265)
        assert allows(rules, head, found["redis"], 6379)
    assert allows(rules, found["mlflow"], BUCKET, 443)


@pytest.mark.parametrize("port", [443, 6443, 8443])
def test_the_autoscaler_reaches_the_api_wherever_it_listens(port: int) -> None:
    assert allows(policies("local"), ends("local")["RayCluster head"], API, port)


def test_ray_reaches_the_object_store_in_the_cluster() -> None:
    found = ends("local")
    for end in [*nodes(found), found["mlflow"]]:
        assert allows(policies("local"), end, found["object-store"], 8333)


@pytest.mark.parametrize("overlay", ["gpu", "local", "spot"])
def test_nobody_else_gets_in(overlay: str) -> None:
    rules, found = policies(overlay), ends(overlay)
    for end in found.values():
        for port in (5000, 5432, 6379, 8265, 8333, 10001):
            assert not allows(rules, STRANGER, end, port)
            assert not allows(rules, BUCKET, end, port)
        assert not allows(rules, end, End(address="169.254.169.254"), 80), "the node's credentials"
    assert not allows(rules, found["submitter"], BUCKET, 443)
    assert not allows(rules, found["submitter"], found["redis"], 6379)
    for name, end in found.items():
        if name.endswith(("cpu", "gpu")):
            assert not allows(rules, end, found["redis"], 6379), "Redis is the head's"


def test_the_evaluation_knows_every_kind_of_rule() -> None:
    def policy(select: Any, **rules: Any) -> Manifest:
        return {"spec": {"podSelector": select, "policyTypes": [k.capitalize() for k in rules], **rules}}

    a, b = End({"app": "a"}), End({"app": "b"})
    assert allows([], a, b, 80), "without policies everything is open"
    assert not allows([policy({}, egress=[])], a, b, 80)
    assert not allows([policy({}, ingress=[])], a, b, 80)
    assert allows([policy({"matchLabels": {"app": "b"}}, egress=[])], a, b, 80), "it selects the other end"
    to_b = policy(
        {}, egress=[{"to": [{"podSelector": {"matchLabels": {"app": "b"}}}], "ports": [{"port": 80}]}]
    )
    assert allows([to_b], a, b, 80) and not allows([to_b], a, b, 81) and not allows([to_b], a, BUCKET, 80)
    assert not allows([to_b], a, b, 80, "UDP")
    assert not allows([to_b], a, End({"app": "b"}, namespace="other"), 80)
    near = policy({}, egress=[{"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}]}])
    assert allows([near], a, End(address="10.2.0.1"), 1) and not allows([near], a, End(address="10.1.0.1"), 1)
    assert selects({"matchExpressions": [{"key": "k", "operator": "NotIn", "values": ["x"]}]}, {"k": "y"})
    assert not selects({"matchExpressions": [{"key": "k", "operator": "Exists"}]}, {})

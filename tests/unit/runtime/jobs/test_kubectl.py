"""A real kubectl, against a stand-in for the API server: what is asked, and what its answers become."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from kubernetes_api import Cluster, document, serving

from sfumato.errors import ConfigError
from sfumato.runtime.jobs.kubectl import Forbidden, Kubectl, Taken
from sfumato.runtime.jobs.manifest import owned

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
KUBECTL = Kubectl("sfumato", "here")
OURS = {"sfumato.io/run": "digits-1", "app.kubernetes.io/instance": "digits"}


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    cluster = Cluster()
    monkeypatch.setenv("HOME", str(tmp_path))
    with serving(cluster, tmp_path) as config:
        monkeypatch.setenv("KUBECONFIG", str(config))
        yield cluster


def test_a_job_and_its_package_come_and_go_together(api: Cluster) -> None:
    job = document("ray.io/v1", "RayJob", "digits", namespace="sfumato", labels=OURS)
    # `kubectl apply` would note the content in an annotation, which holds 256 KiB.
    package = document("v1", "ConfigMap", "digits", namespace="sfumato", labels=OURS)
    made = KUBECTL.create(job)
    KUBECTL.create(owned({**package, "data": {"table.py": "x" * 990_000}}, by=made))
    assert KUBECTL.present("configmap/digits", "configmap/none") == {"configmap/digits"}
    sent = api.named("ConfigMap", "digits")
    assert sent is not None and "annotations" not in sent["metadata"]
    with pytest.raises(Taken):
        KUBECTL.create(job)
    api.statuses = [{"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}]
    assert KUBECTL.job("digits").job.status == "STOPPED"
    api.put("ray.io/v1", "RayJob", "other")
    assert [(found.job.name, found.ours) for found in KUBECTL.jobs()] == [("digits", True), ("other", False)]
    KUBECTL.delete("digits")
    assert [found["metadata"]["name"] for found in api.objects.values()] == ["other"]
    KUBECTL.delete_started("other")
    assert not api.objects
    with pytest.raises(ConfigError, match=r"^no RayJob 'digits' in namespace sfumato of context 'here'"):
        KUBECTL.job("digits")


def test_only_what_is_ours_is_deleted(api: Cluster) -> None:
    api.put("v1", "ConfigMap", "redis", namespace="sfumato")
    api.put("v1", "ConfigMap", "digits", namespace="sfumato", labels=OURS)  # of 0.1: it belongs to no RayJob
    KUBECTL.delete("redis")
    assert api.named("ConfigMap", "redis")
    KUBECTL.delete("digits")
    assert [found["metadata"]["name"] for found in api.objects.values()] == ["redis"]


def test_a_right_that_is_missing_is_known(api: Cluster) -> None:
    api.denied = {("create", "configmaps"), ("get", "configmaps"), ("get", "namespaces")}
    KUBECTL.check()  # a user of one namespace may not ask about namespaces
    with pytest.raises(Forbidden, match="cannot create resource"):
        KUBECTL.create(document("v1", "ConfigMap", "digits", namespace="sfumato"))
    assert KUBECTL.present("configmap/digits") is None


def test_logs_come_from_the_pod_of_the_job(api: Cluster) -> None:
    api.streams = ["first\nsecond\n"]
    with tempfile.TemporaryFile("w+") as errors:
        with KUBECTL.logs("digits", errors) as process:
            assert process.stdout is not None and process.stdout.read() == "first\nsecond\n"
        api.denied = {("logs", "pods")}
        with KUBECTL.logs("digits", errors) as process:
            assert process.wait() != 0
        errors.seek(0)
        assert "(Forbidden)" in errors.read()


def test_what_is_missing_is_one_line(api: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="kubectl knows no context 'there'; it knows here"):
        Kubectl("sfumato", "there").check()
    with pytest.raises(ConfigError, match="has no namespace 'elsewhere'"):
        Kubectl("elsewhere", "here").check()
    with pytest.raises(ConfigError, match="has no namespace 'elsewhere'"):
        Kubectl("elsewhere", "here").jobs()
    api.has_kuberay = False
    with pytest.raises(ConfigError, match=r"context 'here' does not know RayJob: install KubeRay"):
        KUBECTL.check()
    config = yaml.safe_load((tmp_path / "kubeconfig").read_text())
    config["clusters"][0]["cluster"]["server"] = "http://127.0.0.1:9"
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match=r"^kubectl: .*refused") as refused:
        Kubectl("sfumato").check()
    assert "\n" not in str(refused.value)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(
        ConfigError, match="kubectl has no current context: name one by --context; it has none"
    ):
        Kubectl("sfumato").check()
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    with pytest.raises(ConfigError, match="kubectl is not installed"):
        Kubectl("sfumato").check()
    with pytest.raises(ConfigError, match="kubectl is not installed"):
        Kubectl("sfumato").jobs()

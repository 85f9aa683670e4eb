"""A recipe as a RayJob: against KubeRay's schema, against our policy, and through a real kubectl.

The API server that kubectl talks to answers as Kubernetes does for the few requests that are made; no live
cluster was there.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import jsonschema
import kubernetes_validate
import pytest
import yaml
from repository import ROOT

from sfumato.errors import ConfigError
from sfumato.families.diffusion import Config
from sfumato.runtime.jobs import command as commands
from sfumato.runtime.jobs import on_kubernetes
from sfumato.runtime.jobs.kubectl import Kubectl
from sfumato.runtime.jobs.pods import PodSettings
from sfumato.runtime.jobs.submit import SubmitOptions

CRDS = Path(os.environ.get("SFUMATO_SHARED_CRDS", ROOT.parent / "shared" / "crds"))
IMAGE = "registry.example.com/sfumato-gpu:0.1.0"
GPUS = (
    *("parallel.workers=3", "parallel.gpus_per_worker=1", "parallel.cpus_per_worker=4"),
    *("parallel.resources_per_worker.trainer=1", "evaluate.gpus_per_actor=1", "evaluate.every=512"),
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    content = {
        "name": "Tiny_Digits",
        "data": {"path": "data/digits", "streams": 24},
        "model": Config.tiny().model_dump(mode="json"),
        "train": {"images": 512, "batch": 144},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rendered(
    project: Path, *overrides: str, options: SubmitOptions | None = None, image: str = IMAGE, **more: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(ConfigMap, RayJob)"""
    options = options or SubmitOptions(root="/runs")
    command = commands.parse(["run", "tiny.yaml", *overrides], trust=False)
    pods = PodSettings(image=image, root="/runs", claim="runs", **more.pop("pods", {}))
    settings = on_kubernetes.settings_of(
        options, namespace="sfumato", pods=pods, **{"queue": None, "token_secret": None, **more}
    )
    return tuple(on_kubernetes.render(command, options, settings, project=project, name="job-1"))  # type: ignore[return-value]


def pods_of(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    groups = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return {
        "head": cluster["headGroupSpec"]["template"],
        "submit": job["spec"]["submitterPodTemplate"],
        **groups,
    }


def strict(schema: Any) -> Any:
    """The schema with every object closed that says which fields it has, so that a typo is an error."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    closed = {key: value for key, value in schema.items() if key not in ("properties", "format")}
    for key in ("items", "additionalProperties"):
        if key in closed:
            closed[key] = strict(closed[key])
    if "properties" in schema:
        closed["properties"] = {name: strict(part) for name, part in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            closed.setdefault("additionalProperties", False)
    return closed


@pytest.fixture(scope="module")
def ray_job_schema() -> jsonschema.Draft202012Validator:
    file = CRDS / "kuberay-v1.7.0" / "ray.io_rayjobs.yaml"
    if not file.is_file():
        pytest.skip(f"no CRD of KubeRay 1.7.0 in {CRDS}: set SFUMATO_SHARED_CRDS to a folder of CRDs")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    versions = yaml.load(file.read_bytes(), Loader=loader)["spec"]["versions"]  # noqa: S506 - a safe one
    (schema,) = (v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1")
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(strict(schema))


@pytest.mark.parametrize("overrides", [(), GPUS], ids=["cpu", "gpu"])
def test_the_job_is_what_the_schema_allows(
    project: Path, ray_job_schema: jsonschema.Draft202012Validator, overrides: tuple[str, ...]
) -> None:
    options = SubmitOptions(
        root="/runs", secrets=("AWS_SECRET_ACCESS_KEY=store/secret",), environment=("LEVEL=3",)
    )
    pods = {"secret_sets": ("mlflow",), "node_selector": {"gpu": "h100"}, "memory": "20Gi"}
    _, job = rendered(project, *overrides, options=options, queue="team", token_secret="ray-token", pods=pods)
    assert not [f"{list(e.absolute_path)}: {e.message}" for e in ray_job_schema.iter_errors(job)]
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagee"] = "x"
    assert list(ray_job_schema.iter_errors(job)), "the schema notices a typo"


def test_the_pods_are_what_kubernetes_and_our_policy_allow(project: Path) -> None:
    options = SubmitOptions(root="/runs", secrets=("AWS_SECRET_ACCESS_KEY=store/secret",))
    config, job = rendered(project, *GPUS, options=options)
    kubernetes_validate.validate(config, "1.32", strict=True)
    for name, template in pods_of(job).items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": template["spec"]}
        kubernetes_validate.validate(pod, "1.32", strict=True)
        security = template["spec"]["securityContext"]
        assert security["runAsNonRoot"] and security["runAsUser"] != 0, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = template["spec"]["containers"]
        own = container["securityContext"]
        assert own["readOnlyRootFilesystem"] and own["allowPrivilegeEscalation"] is False
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
        written = {mount["name"] for mount in container["volumeMounts"]}
        assert written == {volume["name"] for volume in template["spec"]["volumes"]}
    head = pods_of(job)["head"]["spec"]["containers"][0]["env"]
    (by_reference,) = (entry for entry in head if entry["name"] == "AWS_SECRET_ACCESS_KEY")
    assert by_reference["valueFrom"] == {"secretKeyRef": {"name": "store", "key": "secret"}}


def test_resources_are_those_of_the_recipe(project: Path) -> None:
    _, job = rendered(project, *GPUS, pods={"node_selector": {"gpu": "h100"}})
    groups = {group["groupName"]: group for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]}
    assert {name: group["replicas"] for name, group in groups.items()} == {
        "train": 3,
        "data": 1,
        "evaluate": 1,
    }
    train = groups["train"]
    assert train["rayStartParams"] == {
        "num-cpus": "4",
        "num-gpus": "1",
        "resources": r'"{\"trainer\": 1.0}"',
    }
    limits = train["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["cpu"] == "4" and limits["nvidia.com/gpu"] == "1" and limits["memory"] == "64Gi"
    assert train["template"]["spec"]["nodeSelector"] == {"gpu": "h100"}
    assert "nodeSelector" not in groups["data"]["template"]["spec"]
    assert groups["data"]["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"] == "7"
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0", "the head does no work"


def test_what_is_lost_goes_on_as_the_same_run(project: Path) -> None:
    config, job = rendered(project, "seed=4")
    spec = job["spec"]
    assert spec["backoffLimit"] > 0 and spec["submitterConfig"]["backoffLimit"] > 0
    assert spec["entrypoint"] == "python -m sfumato jobs start /etc/sfumato/job/job.json"
    placed = {item["path"]: config["data"][item["key"]] for item in volume_of(job)["configMap"]["items"]}
    order = json.loads(placed["job.json"])
    assert order["overrides"] == ["seed=4"] and order["root"] == "/runs" and order["flags"] == []
    assert set(placed) == {"job.json", "recipe/tiny.yaml"}
    for name in ("head", "train", "data"):
        (volume,) = (v for v in pods_of(job)[name]["spec"]["volumes"] if v["name"] == "project")
        assert volume["persistentVolumeClaim"] == {"claimName": "runs"}, (
            "the run's folder outlives the cluster"
        )
    command = commands.parse(["run", "tiny.yaml", "--fresh"], trust=False)
    with pytest.raises(ConfigError, match="--fresh with --kubernetes"):
        on_kubernetes.manifest.documents(command, {}, name="x", settings=None)  # type: ignore[arg-type]


def volume_of(job: dict[str, Any]) -> dict[str, Any]:
    (volume,) = (v for v in pods_of(job)["head"]["spec"]["volumes"] if v["name"] == "job")
    return volume


@pytest.mark.parametrize("image", ["sfumato", "sfumato:latest", "registry:5000/sfumato"])
def test_an_image_without_a_version_is_refused(project: Path, image: str) -> None:
    with pytest.raises(ConfigError, match="expected an image with a version"):
        rendered(project, image=image)


def test_other_bad_input(project: Path) -> None:
    with pytest.raises(ConfigError, match="expected NAME=SECRET/KEY"):
        rendered(project, options=SubmitOptions(root="/runs", secrets=("TOKEN=OTHER",)))
    command = commands.parse(["run", "tiny.yaml"], trust=False)
    settings = on_kubernetes.settings_of(
        SubmitOptions(),
        namespace="n",
        queue=None,
        token_secret=None,
        pods=PodSettings(IMAGE, "/runs", "runs"),
    )
    with pytest.raises(ConfigError, match=r"a ConfigMap holds 1,000,000 \(mine/big.bin alone"):
        on_kubernetes.manifest.documents(
            command, {"mine/big.bin": bytes(1_000_001)}, name="job-1", settings=settings
        )
    with pytest.raises(ConfigError, match="expected lower-case letters"):
        on_kubernetes.render(command, SubmitOptions(), settings, project=project, name="Job_1")


class Api(BaseHTTPRequestHandler):
    """What of Kubernetes' API a job's submission asks for."""

    has_kuberay = True
    objects: ClassVar[dict[str, Any]] = {}
    states: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        kuberay = [{"name": "ray.io", **group_version("ray.io/v1")}] if self.has_kuberay else []
        fixed: dict[str, Any] = {
            "/api": {"kind": "APIVersions", "versions": ["v1"]},
            "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": kuberay},
            "/api/v1": resources("v1", ("configmaps", "ConfigMap", True), ("namespaces", "Namespace", False)),
            "/apis/ray.io/v1": resources("ray.io/v1", ("rayjobs", "RayJob", True)),
            "/api/v1/namespaces/sfumato": {**meta("v1", "Namespace", "sfumato")},
            "/openapi/v3": {"paths": {gv: {"serverRelativeURL": f"/openapi/v3/{gv}"} for gv in VERSIONS}},
            **{f"/openapi/v3/{gv}": openapi(gv) for gv in VERSIONS},
        }
        if path.endswith("/rayjobs"):
            jobs = [item for item in self.objects.values() if item["kind"] == "RayJob"]
            self.answer({"kind": "RayJobList", "apiVersion": "ray.io/v1", "metadata": {}, "items": jobs})
        elif path in fixed:
            self.answer(fixed[path])
        elif path in self.objects:
            found = self.objects[path]
            if found["kind"] == "RayJob" and self.states:
                state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
                found["status"] = {"jobDeploymentStatus": state, "message": ""}
            self.answer(found)
        else:
            self.answer(
                meta("v1", "Status", "") | {"status": "Failure", "reason": "NotFound", "code": 404}, 404
            )

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        path = self.path.partition("?")[0]
        self.objects[f"{path}/{content['metadata']['name']}"] = content
        self.answer(content, 201)

    def do_DELETE(self) -> None:
        self.objects.pop(self.path.partition("?")[0], None)
        self.answer(meta("v1", "Status", "") | {"status": "Success"})

    def answer(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


VERSIONS = {"api/v1": "ConfigMap", "apis/ray.io/v1": "RayJob"}


def openapi(group_version: str) -> dict[str, Any]:
    """What says that the server looks for unknown fields itself, so that kubectl asks it to."""
    group, _, version = group_version.removeprefix("api/").removeprefix("apis/").rpartition("/")
    kind = VERSIONS[group_version]
    patch = {
        "parameters": [{"name": "fieldValidation", "in": "query"}],
        "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
        "responses": {},
    }
    paths = {f"/{group_version}/namespaces/{{namespace}}/{kind.lower()}s/{{name}}": {"patch": patch}}
    return {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "1"}, "paths": paths}


def meta(version: str, kind: str, name: str) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}}


def group_version(version: str) -> dict[str, Any]:
    named = {"groupVersion": version, "version": version.partition("/")[2]}
    return {"versions": [named], "preferredVersion": named}


def resources(version: str, *kinds: tuple[str, str, bool]) -> dict[str, Any]:
    verbs = ["create", "delete", "get", "list", "patch"]
    listed = [
        {"name": name, "singularName": kind.lower(), "kind": kind, "namespaced": inside, "verbs": verbs}
        for name, kind, inside in kinds
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": listed}


@pytest.fixture
def api(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Api]]:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")

    class Own(Api):
        objects: ClassVar[dict[str, Any]] = {}
        states: ClassVar[list[str]] = []

    server = ThreadingHTTPServer(("127.0.0.1", 0), Own)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {}}],
        "current-context": "here",
    }
    (project / "kubeconfig").write_text(yaml.safe_dump(content))
    monkeypatch.setenv("KUBECONFIG", str(project / "kubeconfig"))
    monkeypatch.setenv("HOME", str(project))
    yield Own
    server.shutdown()
    server.server_close()


def test_kubectl_sends_a_job_and_tells_how_it_goes(api: type[Api], project: Path) -> None:
    kubectl = Kubectl("sfumato", "here")
    command = commands.parse(["run", "tiny.yaml"], trust=False)
    options = SubmitOptions(root="/runs")
    settings = on_kubernetes.settings_of(
        options, namespace="sfumato", queue=None, token_secret=None, pods=PodSettings(IMAGE, "/runs", "runs")
    )
    name = on_kubernetes.send(command, options, settings, kubectl, project=project)
    label = f"tiny-digits-{command.recipe.digest()[:8]}"
    assert name == f"{label}-1"
    kinds = {content["kind"] for content in api.objects.values()}
    assert kinds == {"ConfigMap", "RayJob"}
    (listed,) = kubectl.jobs()
    assert (listed.name, listed.status, listed.command) == (name, "PENDING", "run tiny.yaml")
    with pytest.raises(
        ConfigError, match=f"job '{name}' at namespace sfumato is working on this run already"
    ):
        on_kubernetes.send(command, options, settings, kubectl, project=project)

    api.states.extend(["Initializing", "Retrying", "Complete"])
    said: list[str] = []
    on_kubernetes._POLL_S = 0.0
    assert on_kubernetes.follow(kubectl, name, said.append).status == "SUCCEEDED"
    assert "".join(said).splitlines() == [
        f"job {name}: {s}" for s in ("initializing", "retrying", "succeeded")
    ]
    assert on_kubernetes.send(command, options, settings, kubectl, project=project) == f"{label}-2"
    kubectl.delete(name)
    assert not [path for path in api.objects if path.endswith(f"/{name}")], "its package goes with it"
    with pytest.raises(ConfigError, match="no RayJob"):
        kubectl.job(name)


def test_what_is_missing_is_one_line(api: type[Api], project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="kubectl knows no context 'there'; it knows here"):
        Kubectl("sfumato", "there").check()
    with pytest.raises(ConfigError, match="has no namespace 'elsewhere'"):
        Kubectl("elsewhere", "here").check()
    api.has_kuberay = False
    with pytest.raises(ConfigError, match=r"context 'here' does not know RayJob: install KubeRay"):
        Kubectl("sfumato", "here").check()
    config = yaml.safe_load((project / "kubeconfig").read_text())
    config["clusters"][0]["cluster"]["server"] = "http://127.0.0.1:9"
    (project / "kubeconfig").write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match=r"^kubectl: .*refused") as refused:
        Kubectl("sfumato").check()
    assert "\n" not in str(refused.value)
    monkeypatch.setenv("KUBECONFIG", str(project / "none"))
    with pytest.raises(
        ConfigError, match="kubectl has no current context: name one by --context; it has none"
    ):
        Kubectl("sfumato").check()
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    with pytest.raises(ConfigError, match="kubectl is not installed"):
        Kubectl("sfumato").check()

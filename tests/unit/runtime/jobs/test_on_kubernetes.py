"""A recipe as a RayJob: against KubeRay's schema and against our policy."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import kuberay_rules
import kubernetes_validate
import manifests
import pytest
import yaml
from manifests import of_kind
from network_policies import End, allows
from repository import ROOT

from sfumato.errors import ConfigError
from sfumato.families.diffusion import Config
from sfumato.runtime.jobs import on_kubernetes
from sfumato.runtime.jobs import parsing as commands
from sfumato.runtime.jobs.manifest import Schedule
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
    return schema_of(file)


def schema_of(file: Path) -> jsonschema.Draft202012Validator:
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


def test_a_schedule_wraps_the_same_job(project: Path) -> None:
    file = CRDS / "kuberay-v1.7.0" / "ray.io_raycronjobs.yaml"
    if not file.is_file():
        pytest.skip(f"no CRD of KubeRay 1.7.0 in {CRDS}: set SFUMATO_SHARED_CRDS to a folder of CRDs")
    nightly = Schedule("0 3 * * 1-5", "Europe/Rome")
    config, job = rendered(project, schedule=nightly)
    plain_config, plain = rendered(project)
    assert job["kind"] == "RayCronJob" and config == plain_config
    assert job["spec"] == {"schedule": nightly.cron, "timeZone": nightly.zone, "jobTemplate": plain["spec"]}
    assert not list(schema_of(file).iter_errors(job))
    for cron in ("3", "0 3 * *", "* * * * * *", "0 3 * * ; rm"):
        with pytest.raises(ConfigError, match="expected minute, hour, day of month"):
            Schedule(cron)
    with pytest.raises(ConfigError, match="not a time zone"):
        Schedule("0 3 * * *", "Rome")


@pytest.mark.parametrize("overrides", [(), GPUS], ids=["cpu", "gpu"])
@pytest.mark.parametrize("queue", [None, "team"])
def test_the_operators_take_the_job(project: Path, overrides: tuple[str, ...], queue: str | None) -> None:
    """KubeRay's own checks, and those of Kueue, whose webhook alone suspends what is to wait."""
    _, job = rendered(project, *overrides, queue=queue)
    assert job["metadata"]["labels"].get(kuberay_rules.QUEUE) == queue
    assert "suspend" not in job["spec"]
    assert kuberay_rules.problems(job) == []
    if queue is None:
        assert kuberay_rules.problems(rendered(project, *overrides, schedule=Schedule("0 3 * * *"))[1]) == []


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
    assert order["arguments"] == ["seed=4"] and order["root"] == "/runs"
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


@pytest.mark.skipif(not manifests.HAVE_KUSTOMIZE, reason=manifests.NO_KUSTOMIZE)
@pytest.mark.parametrize("overlay", ["local", "gpu"])
def test_the_policies_of_the_platform_let_a_job_work(project: Path, overlay: str) -> None:
    policies = of_kind(manifests.rendered(overlay), "NetworkPolicy")
    made = pods_of(rendered(project, *GPUS)[1])
    submitter = End(made.pop("submit")["metadata"]["labels"])
    kinds = {name: "head" if name == "head" else "worker" for name in made}
    # KubeRay adds these two.
    ray = {
        name: End(pod["metadata"]["labels"] | {"ray.io/is-ray-node": "yes", "ray.io/node-type": kinds[name]})
        for name, pod in made.items()
    }
    assert allows(policies, submitter, ray["head"], 8265), "or the job waits for ever"
    assert not allows(policies, submitter, ray["train"], 8265)
    for node in ray.values():
        assert allows(policies, node, End(address="52.219.0.1"), 443), "a bucket of the cloud"
        assert allows(policies, node, End({"app.kubernetes.io/name": "mlflow"}), 5000)
        store = End({"app.kubernetes.io/name": "object-store"})
        assert allows(policies, node, store, 8333) == (overlay == "local")
        assert all(allows(policies, node, other, 10002) for other in ray.values())


def test_pods_have_the_identity_that_may_use_the_bucket(project: Path) -> None:
    accounts = {
        manifest["metadata"]["name"]
        for manifest in manifests.written()["base/platform/service-accounts.yaml"]
    }
    for pod in pods_of(rendered(project)[1]).values():
        assert pod["spec"]["serviceAccountName"] in accounts
        assert pod["spec"]["automountServiceAccountToken"] is False
    own = pods_of(rendered(project, pods={"account": "team"})[1])
    assert {pod["spec"]["serviceAccountName"] for pod in own.values()} == {"team"}


def test_a_job_that_hangs_ends_one_day(project: Path) -> None:
    assert rendered(project)[1]["spec"]["activeDeadlineSeconds"] == 14 * 24 * 3600
    assert rendered(project, deadline_days=0.5)[1]["spec"]["activeDeadlineSeconds"] == 12 * 3600

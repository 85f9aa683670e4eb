"""The pods of a job: at pod security level `restricted`, with limits, and secrets by reference alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sfumato.runtime.jobs.groups import Group

JOB_FOLDER = "/etc/sfumato/job"
GPU = "nvidia.com/gpu"
# By these labels the network policies of k8s/base know who submits, and who reads and writes a bucket.
_SUBMITS = {"app.kubernetes.io/name": "job-submitter"}
_USES_BUCKET = {"sfumato.io/object-store": "yes"}
_USER = 1000


@dataclass(frozen=True)
class PodSettings:
    """What the pods are made of, and what they may use."""

    image: str
    root: str
    """Where the volume is mounted: the project's folder."""
    claim: str
    """PersistentVolumeClaim (ReadWriteMany) that head and workers share, and that outlives the cluster."""
    environment: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Environment variables by (Secret, key)."""
    secret_sets: tuple[str, ...] = ()
    """Secrets all of whose keys become environment variables."""
    node_selector: dict[str, str] = field(default_factory=dict)
    """Of the pods with GPUs."""
    memory: str | None = None
    """Of a pod that trains; null: 64Gi with GPUs, 8Gi without."""
    account: str = "ray-worker"
    """Service account, which may stand for an identity of the cloud's that may use the bucket."""


def head(settings: PodSettings, package: dict[str, Any]) -> dict[str, Any]:
    """The head runs drivers and no work, so that it does not run out of memory."""
    ports = [
        {"name": "gcs-server", "containerPort": 6379},
        {"name": "dashboard", "containerPort": 8265},
        {"name": "client", "containerPort": 10001},
    ]
    size = {"cpu": "2", "memory": "8Gi", "ephemeral-storage": "20Gi"}
    return _template("ray-head", settings, size, package, {"ports": ports}, keep=True)


def worker(group: Group, settings: PodSettings, package: dict[str, Any]) -> dict[str, Any]:
    """Requests equal limits, so that the kernel ends others first."""
    size = {"cpu": str(group.cpus), "memory": _memory(group, settings), "ephemeral-storage": "40Gi"}
    if group.gpus:
        size[GPU] = str(group.gpus)
    template = _template("ray-worker", settings, size, package, {}, keep=group.name == "train")
    if group.gpus:
        template["spec"]["tolerations"] = [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]
        if settings.node_selector:
            template["spec"]["nodeSelector"] = dict(settings.node_selector)
    # Time to finish a checkpoint that is being written.
    template["spec"]["terminationGracePeriodSeconds"] = 120
    return template


def submitter(settings: PodSettings) -> dict[str, Any]:
    """Hands the entrypoint to the head and follows it; if it is lost, another one follows the same job."""
    size = {"cpu": "1", "memory": "1Gi", "ephemeral-storage": "2Gi"}
    template = _template("ray-job-submitter", settings, size, None, {}, keep=False)
    container = template["spec"]["containers"][0]
    container["env"] = [{"name": "HOME", "value": "/tmp"}]  # noqa: S108
    container.pop("envFrom", None)  # it works with the token alone, which KubeRay gives it
    template["spec"]["restartPolicy"] = "Never"
    return template


def _memory(group: Group, settings: PodSettings) -> str:
    if group.name == "train" and settings.memory is not None:
        return settings.memory
    return "64Gi" if group.gpus else f"{max(8, 2 * group.cpus)}Gi"


def _template(
    name: str,
    settings: PodSettings,
    size: dict[str, str],
    package: dict[str, Any] | None,
    more: dict[str, Any],
    *,
    keep: bool,
) -> dict[str, Any]:
    volumes: list[dict[str, Any]] = [{"name": "tmp", "emptyDir": {}}]
    mounts: list[dict[str, Any]] = [{"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108
    if package is not None:
        shared = {"medium": "Memory", "sizeLimit": "4Gi"}
        volumes += [
            {"name": "shared-memory", "emptyDir": shared},
            package,
            {"name": "project", "persistentVolumeClaim": {"claimName": settings.claim}},
        ]
        mounts += [
            {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108
            {"name": "job", "mountPath": JOB_FOLDER, "readOnly": True},
            {"name": "project", "mountPath": settings.root},
        ]
    container: dict[str, Any] = {
        "name": name,
        "image": settings.image,
        "env": _environment(settings),
        "resources": {"requests": dict(size), "limits": dict(size)},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": mounts,
        **more,
    }
    if settings.secret_sets:
        container["envFrom"] = [{"secretRef": {"name": secret}} for secret in settings.secret_sets]
    purpose = _SUBMITS if package is None else _USES_BUCKET
    metadata: dict[str, Any] = {"labels": {"app.kubernetes.io/part-of": "sfumato", **purpose}}
    if keep:
        # No autoscaler of nodes may move this pod to save one.
        metadata["annotations"] = {
            "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
            "karpenter.sh/do-not-disrupt": "true",
        }
    return {
        "metadata": metadata,
        "spec": {
            "serviceAccountName": settings.account,
            "automountServiceAccountToken": False,
            "securityContext": _pod_security(),
            "containers": [container],
            "volumes": volumes,
        },
    }


def _pod_security() -> dict[str, Any]:
    return {
        "runAsNonRoot": True,
        "runAsUser": _USER,
        "runAsGroup": _USER,
        "fsGroup": _USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _environment(settings: PodSettings) -> list[dict[str, Any]]:
    plain = {
        "HOME": "/tmp",  # noqa: S108 - the only place besides the volume that can be written
        "PYTHONPATH": JOB_FOLDER,  # a family's own code, which came with the recipe
        "PYTHONDONTWRITEBYTECODE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        # A job that is deleted ends as it does at ctrl-C.
        "RAY_JOB_STOP_SIGNAL": "SIGINT",
        **settings.environment,
    }
    made: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in plain.items()]
    return made + [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
        for name, (secret, key) in settings.secrets.items()
    ]

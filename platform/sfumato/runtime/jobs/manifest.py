"""A command as a RayJob of KubeRay 1.7: a pure function to plain data, which `kubectl create` takes as YAML.

The RayJob brings a cluster of its own and takes it away when it is over. Its entrypoint is the command,
so whatever is lost, head, submitter or worker, the same command runs again, finds its run by name and goes
on from the newest checkpoint. For that the run's folder is on a volume that outlives the cluster.

Such manifests were applied to an API server 1.36 and reconciled by KubeRay 1.7.0; no containers ran there.
"""

from __future__ import annotations

import base64
import json
import re
import zoneinfo
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sfumato.errors import ConfigError
from sfumato.runtime.jobs import pods
from sfumato.runtime.jobs.command import Command
from sfumato.runtime.jobs.groups import Group, groups_of
from sfumato.runtime.jobs.package import ORDER
from sfumato.runtime.jobs.pods import JOB_FOLDER, PodSettings
from sfumato.tracking.redact import clean_uri

RUN_LABEL = "sfumato.io/run"
NAME_LABEL = "app.kubernetes.io/instance"
COMMAND_NOTE = "sfumato.io/command"
TRACKING_NOTE = "sfumato.io/tracking"
# KubeRay makes longer names of it, which have to be labels (63 characters).
_LONGEST_NAME = 47
_LONGEST_SCHEDULED = 36
_FIELD = r"(\*|[0-9A-Za-z]+(-[0-9A-Za-z]+)?)(/[0-9]+)?"
_CRON = re.compile(rf"{_FIELD}(,{_FIELD})*( {_FIELD}(,{_FIELD})*){{4}}")
_LARGEST_MAP = 1_000_000
_DAY_S = 86_400
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,45}[a-z0-9])?")


@dataclass(frozen=True)
class Schedule:
    """Times in the five fields of cron: minute, hour, day of month, month, day of week."""

    cron: str
    zone: str = "Etc/UTC"

    def __post_init__(self) -> None:
        if not _CRON.fullmatch(self.cron):
            raise ConfigError(
                f"--schedule {self.cron!r}: expected minute, hour, day of month, month and day of week, for "
                "example '0 3 * * *' for every night at three"
            )
        if self.zone not in zoneinfo.available_timezones():
            raise ConfigError(f"--time-zone {self.zone!r}: not a time zone, such as Etc/UTC or Europe/Rome")


@dataclass(frozen=True)
class JobSettings:
    """Everything of the job that is not the command."""

    namespace: str
    pods: PodSettings
    ray_version: str
    retries: int = 5
    """How often a job that fails or loses its head gets a new cluster."""
    queue: str | None = None
    """LocalQueue of Kueue that admits the job's pods all at once."""
    token_secret: str | None = None
    """Secret with the cluster's token; KubeRay makes one where there is none."""
    schedule: Schedule | None = None
    """When the job begins, again and again; None: at once."""
    deadline_days: float = 14.0
    """After so long an attempt is ended, and not tried again: a bound on what a job that hangs may cost."""


def documents(
    command: Command, files: Mapping[str, bytes], *, name: str, settings: JobSettings
) -> list[dict[str, Any]]:
    """The ConfigMap with the package and the RayJob that runs it. Raises ConfigError."""
    if command.fresh:
        raise ConfigError(
            "--fresh with --kubernetes: a job that restarts would begin from scratch each time; give the "
            "recipe another name or seed instead"
        )
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"--name {name!r}: on Kubernetes expected lower-case letters, digits and dashes, beginning with "
            f"a letter, at most {_LONGEST_NAME}"
        )
    labels = {
        "app.kubernetes.io/part-of": "sfumato",
        NAME_LABEL: name,
        RUN_LABEL: run_label(command),
    }
    keys = _keys(files)
    job = _ray_job(command, _meta(name, settings.namespace, labels), keys, settings)
    if settings.schedule is not None:
        job = _scheduled(job, name, settings.schedule)
    return [_config_map(files, keys, _meta(name, settings.namespace, labels)), job]


def _scheduled(job: dict[str, Any], name: str, schedule: Schedule) -> dict[str, Any]:
    if len(name) > _LONGEST_SCHEDULED:
        raise ConfigError(
            f"--name {name!r}: with --schedule at most {_LONGEST_SCHEDULED} characters; each job adds to it"
        )
    timing = {"schedule": schedule.cron, "timeZone": schedule.zone}
    return {**job, "kind": "RayCronJob", "spec": {**timing, "jobTemplate": job["spec"]}}


def owned(document: Mapping[str, Any], by: Mapping[str, Any]) -> dict[str, Any]:
    """The document as a part of an object that is there already, and is deleted with it."""
    metadata = by["metadata"]
    owner = {
        "apiVersion": by["apiVersion"],
        "kind": by["kind"],
        "name": metadata["name"],
        "uid": metadata["uid"],
    }
    return {**document, "metadata": {**document["metadata"], "ownerReferences": [owner]}}


def schedule_name(command: Command) -> str:
    """A schedule's name, where none is given."""
    return run_label(command)[-_LONGEST_SCHEDULED:].lstrip("-0123456789")


def run_label(command: Command) -> str:
    """What the command computes, as a label: the name and digest of what it works on."""
    slug = re.sub(r"[^a-z0-9]+", "-", command.title.lower()).strip("-")[:28].strip("-")
    return f"{slug if slug[:1].isalpha() else f'run-{slug}'}-{command.digest[:8]}"


def _ray_job(
    command: Command, metadata: dict[str, Any], keys: Mapping[str, str], settings: JobSettings
) -> dict[str, Any]:
    if settings.queue is not None:
        metadata["labels"]["kueue.x-k8s.io/queue-name"] = settings.queue
    metadata["annotations"] = {COMMAND_NOTE: str(command)}
    if command.tracking:
        metadata["annotations"][TRACKING_NOTE] = clean_uri(command.tracking)
    volume = {
        "name": "job",
        "configMap": {
            "name": metadata["name"],
            "items": [{"key": key, "path": path} for path, key in keys.items()],
        },
    }
    cluster: dict[str, Any] = {
        "rayVersion": settings.ray_version,
        "authOptions": {"mode": "token"}
        | ({"secretName": settings.token_secret} if settings.token_secret else {}),
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "num-gpus": "0", "dashboard-host": "0.0.0.0"},  # noqa: S104
            "template": pods.head(settings.pods, volume),
        },
        "workerGroupSpecs": [_worker_group(group, settings, volume) for group in groups_of(command)],
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": metadata,
        "spec": {
            "entrypoint": f"python -m sfumato jobs start {JOB_FOLDER}/{ORDER}",
            # Not SidecarMode: the container that KubeRay adds to the head there has no security context.
            "submissionMode": "K8sJobMode",
            "backoffLimit": settings.retries,
            "submitterConfig": {"backoffLimit": 10},
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 300,
            "activeDeadlineSeconds": round(settings.deadline_days * _DAY_S),
            "rayClusterSpec": cluster,
            "submitterPodTemplate": pods.submitter(settings.pods),
        },
    }


def _worker_group(group: Group, settings: JobSettings, volume: dict[str, Any]) -> dict[str, Any]:
    start = {"num-cpus": str(group.cpus), "num-gpus": str(group.gpus)}
    if group.custom:
        # Quoted once more, as KubeRay's documentation has it: it writes the value into a command line.
        start["resources"] = json.dumps(json.dumps(group.custom))
    return {
        "groupName": group.name,
        "replicas": group.replicas,
        "minReplicas": group.replicas,
        "maxReplicas": group.replicas,
        "rayStartParams": start,
        "template": pods.worker(group, settings.pods, volume),
    }


def _config_map(
    files: Mapping[str, bytes], keys: Mapping[str, str], metadata: dict[str, Any]
) -> dict[str, Any]:
    size = sum(len(content) for content in files.values())
    if size > _LARGEST_MAP:
        largest = max(files, key=lambda path: len(files[path]))
        raise ConfigError(
            f"the recipe and its code have {size:,} bytes and a ConfigMap holds {_LARGEST_MAP:,} ({largest} "
            f"alone has {len(files[largest]):,}): exclude what is not code in .sfumatoignore, or put it into "
            "the image"
        )
    text, binary = {}, {}
    for path, content in files.items():
        try:
            text[keys[path]] = content.decode()
        except UnicodeDecodeError:
            binary[keys[path]] = base64.b64encode(content).decode()
    made: dict[str, Any] = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": text}
    return {**made, "binaryData": binary} if binary else made


def _keys(files: Mapping[str, bytes]) -> dict[str, str]:
    """A ConfigMap's keys have no slashes: numbers make them different, names make them readable."""
    return {
        path: f"{number}-{re.sub(r'[^A-Za-z0-9._-]', '_', path.rpartition('/')[2])}"
        for number, path in enumerate(sorted(files))
    }


def _meta(name: str, namespace: str, labels: Mapping[str, str]) -> dict[str, Any]:
    return {"name": name, "namespace": namespace, "labels": dict(labels)}

"""What KubeRay 1.7 and Kueue 0.19 refuse beyond their schemas, written by hand after their validation code.

KubeRay: ray-operator/controllers/ray/utils/validation.go; Kueue: pkg/controller/jobs/rayjob. The rules are
those that concern what the manifests use, with the feature gates at their defaults (RayCronJob apart, which
the manifests ask for).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

Spec = dict[str, Any]
_MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_RAY_RESOURCES = ("num-cpus", "num-gpus", "memory", "resources")
QUEUE = "kueue.x-k8s.io/queue-name"
_POD_SETS = 18
# KubeRay appends to names: `-head-svc` to a cluster's, five random characters to a job's, a time to a cron's.
_NAME_LENGTHS = {"RayCluster": 53, "RayJob": 47, "RayCronJob": 36}


def problems(manifest: dict[str, Any]) -> list[str]:
    """What an operator would refuse in a RayCluster, RayJob or RayCronJob, one line each."""
    kind, name, spec = manifest["kind"], manifest["metadata"]["name"], manifest["spec"]
    found = []
    if len(name) > _NAME_LENGTHS[kind] or not _LABEL.fullmatch(name):
        found.append(f"name: at most {_NAME_LENGTHS[kind]} characters, a DNS label that starts with a letter")
    checks: dict[str, Callable[[Spec], Iterator[str]]] = {
        "RayCluster": _cluster,
        "RayJob": _job,
        "RayCronJob": _cron_job,
    }
    found += checks[kind](spec)
    if kind == "RayJob" and QUEUE in manifest["metadata"].get("labels", {}):
        found += _queued(spec)
    return found


def _cron_job(spec: Spec) -> Iterator[str]:
    if "TZ" in spec["schedule"]:
        yield "schedule: name the time zone in timeZone"
    if len(spec["schedule"].split()) != 5:
        yield "schedule: five fields"
    try:
        ZoneInfo(spec.get("timeZone", "UTC"))
    except (ZoneInfoNotFoundError, ValueError):
        yield f"timeZone: {spec['timeZone']!r} is none"
    yield from _job(spec["jobTemplate"])


def _job(spec: Spec) -> Iterator[str]:
    mode, cluster = spec.get("submissionMode", "K8sJobMode"), spec.get("rayClusterSpec")
    if mode not in _MODES:
        yield f"submissionMode: {mode!r} is none of {', '.join(_MODES)}"
    yield from _life(spec)
    yield from _selector(spec, mode)
    retries = spec.get("backoffLimit", 0)
    if retries < 0:
        yield "backoffLimit: not negative"
    if mode == "InteractiveMode" and retries > 0:
        yield "backoffLimit: not in InteractiveMode"
    if mode == "SidecarMode":
        yield from _sidecar(spec)
    for field in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(field, 1) <= 0:
            yield f"{field}: positive"
    if cluster is not None:
        yield from (f"rayClusterSpec: {line}" for line in _cluster(cluster))


def _life(spec: Spec) -> Iterator[str]:
    """When a job's cluster ends."""
    ends, strategy = spec.get("shutdownAfterJobFinishes", False), spec.get("deletionStrategy")
    if spec.get("suspend") and not ends:
        yield "suspend: only with shutdownAfterJobFinishes"
    if spec.get("ttlSecondsAfterFinished", 0) < 0:
        yield "ttlSecondsAfterFinished: not negative"
    if spec.get("ttlSecondsAfterFinished", 0) > 0 and not ends:
        yield "ttlSecondsAfterFinished: only with shutdownAfterJobFinishes"
    if strategy is not None:
        rules, older = strategy.get("deletionRules"), {"onSuccess", "onFailure"} & set(strategy)
        if bool(rules) == bool(older) or len(older) == 1:
            yield "deletionStrategy: either deletionRules, or both onSuccess and onFailure"
        if rules and ends:
            yield "deletionStrategy: deletionRules exclude shutdownAfterJobFinishes"


def _selector(spec: Spec, mode: str) -> Iterator[str]:
    """A job on a cluster that exists."""
    selector = spec.get("clusterSelector")
    if not selector:
        if spec.get("rayClusterSpec") is None:
            yield "one of rayClusterSpec and clusterSelector"
        return
    if not selector.get("ray.io/cluster"):
        yield "clusterSelector: names no ray.io/cluster"
    if spec.get("suspend"):
        yield "clusterSelector: excludes suspend"
    if mode == "SidecarMode":
        yield "clusterSelector: excludes SidecarMode"
    if spec.get("backoffLimit", 0) > 0:
        yield "clusterSelector: excludes backoffLimit"


def _sidecar(spec: Spec) -> Iterator[str]:
    for field in ("submitterPodTemplate", "submitterConfig"):
        if field in spec:
            yield f"{field}: not in SidecarMode"
    head = (spec.get("rayClusterSpec") or {}).get("headGroupSpec", {}).get("template", {}).get("spec", {})
    if head.get("restartPolicy", "Never") != "Never":
        yield "restartPolicy of the head: Never in SidecarMode"


def _cluster(spec: Spec) -> Iterator[str]:
    head, groups = spec["headGroupSpec"], spec.get("workerGroupSpecs", [])
    scales = spec.get("enableInTreeAutoscaling", False)
    options = spec.get("autoscalerOptions") or {}
    second = scales and options.get("version") == "v2"
    for name, group in (("head", head), *((g["groupName"], g) for g in groups)):
        yield from (f"{name}: {line}" for line in _group(group, second=second))
    for group in groups:
        yield from (f"{group['groupName']}: {line}" for line in _replicas(group, scales, second))
    if options.get("idleTimeoutSeconds", 0) < 0:
        yield "autoscalerOptions.idleTimeoutSeconds: not negative"
    environment = _environment(head)
    if "RAY_enable_autoscaler_v2" in environment and ("version" in options or not scales):
        yield "RAY_enable_autoscaler_v2: say it by autoscalerOptions.version"
    yield from _control_state(spec, environment)
    yield from _tokens(spec)
    for field, gate in (("networkPolicy", "RayClusterNetworkPolicy"), ("tlsOptions", "RayClusterMTLS")):
        if field in spec:
            yield f"{field}: needs the feature gate {gate}, which is off by default"


def _group(group: Spec, *, second: bool) -> Iterator[str]:
    pod, parameters = group["template"].get("spec", {}), group.get("rayStartParams") or {}
    if not pod.get("containers"):
        yield "at least one container"
    if group.get("resources") and any(parameters.get(name) for name in _RAY_RESOURCES):
        yield "resources: here or in rayStartParams, not in both"
    if "labels" in parameters:
        yield "rayStartParams.labels: use labels of the group"
    if any(not isinstance(value, str) for value in parameters.values()):
        yield "rayStartParams: strings"
    if second and pod.get("restartPolicy", "Never") != "Never":
        yield "restartPolicy: Never with autoscaler v2"


def _replicas(group: Spec, scales: bool, second: bool) -> Iterator[str]:
    least, most = group.get("minReplicas"), group.get("maxReplicas")
    if not scales and (least is None or most is None):
        yield "minReplicas and maxReplicas, without an autoscaler"
    if (least is not None and least < 0) or (most is not None and most < 0):
        yield "replicas: not negative"
    if least is not None and most is not None and least > most:
        yield f"minReplicas {least} is above maxReplicas {most}"
    if group.get("suspend"):
        yield "suspend: not with an autoscaler"
    for field in ("idleTimeoutSeconds", "priority"):
        if group.get(field) and not second:
            yield f"{field}: only with autoscaler v2"


def _control_state(spec: Spec, environment: set[str]) -> Iterator[str]:
    """Fault tolerance of Ray's control plane."""
    options, parameters = (
        spec.get("gcsFaultToleranceOptions"),
        spec["headGroupSpec"].get("rayStartParams", {}),
    )
    if "REDIS_USERNAME" in environment or "redis-username" in parameters:
        yield "redis username: by gcsFaultToleranceOptions.redisUsername"
    if options is None:
        if "RAY_REDIS_ADDRESS" in environment:
            yield "RAY_REDIS_ADDRESS: only with gcsFaultToleranceOptions"
        return
    for name in ("RAY_REDIS_ADDRESS", "REDIS_PASSWORD"):
        if name in environment:
            yield f"{name}: by gcsFaultToleranceOptions"
    if "redis-password" in parameters:
        yield "redis-password: by gcsFaultToleranceOptions.redisPassword"
    if options.get("backend", "redis") == "rocksdb":
        yield "backend rocksdb: needs a feature gate that is off by default"
    elif "storage" in options:
        yield "gcsFaultToleranceOptions.storage: of backend rocksdb alone"


def _tokens(spec: Spec) -> Iterator[str]:
    options = spec.get("authOptions") or {}
    if options.get("mode") == "token":
        version = tuple(int(part) for part in re.findall(r"\d+", str(spec.get("rayVersion", "")))[:2])
        if version < (2, 52):
            yield "authOptions: token needs rayVersion 2.52 or newer"
        if options.get("enableK8sTokenAuth") and options.get("secretName"):
            yield "authOptions: enableK8sTokenAuth excludes secretName"
    elif options.get("enableK8sTokenAuth"):
        yield "authOptions: enableK8sTokenAuth needs mode token"


def _queued(spec: Spec) -> Iterator[str]:
    """Kueue's side, for a job with a queue's name."""
    if spec.get("clusterSelector"):
        yield "a queued job uses no existing cluster"
    if not spec.get("shutdownAfterJobFinishes"):
        yield "a queued job gives its cluster back: shutdownAfterJobFinishes"
    cluster = spec.get("rayClusterSpec") or {}
    if cluster.get("enableInTreeAutoscaling"):
        yield "a queued cluster does not scale by itself: it would grow past what was admitted"
    if len(cluster.get("workerGroupSpecs", [])) >= _POD_SETS:
        yield f"at most {_POD_SETS - 1} groups of workers"


def _environment(group: Spec) -> set[str]:
    containers = group["template"].get("spec", {}).get("containers", [])
    return {entry["name"] for entry in (containers[0].get("env", []) if containers else [])}

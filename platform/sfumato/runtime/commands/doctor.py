"""Reports what this machine has, and what would keep a recipe from running on it."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sfumato.errors import with_extra
from sfumato.runtime.cluster import ray_cluster
from sfumato.runtime.cluster.private_cluster import temporary_root

_PACKAGES = ("ray", "torch", "diffusers", "mlflow", "webdataset", "pyarrow", "pydantic", "safetensors")
_EXTRAS = {"deepspeed": "deepspeed", "transformers": "features"}
_SHARED = "/dev/shm"  # noqa: S108 - where Ray puts its object store
_LEAST_FREE_GB = 2.0
_LEAST_MEMORY_GB = 4.0


@dataclass(frozen=True)
class Finding:
    """One line of the report: `ok` is False for problems to fix, None for something that is merely absent."""

    name: str
    ok: bool | None
    detail: str


def examine(root: Path) -> list[Finding]:
    """All findings; every check runs, whatever the others report."""
    checks: list[Callable[[], list[Finding]]] = [
        _python,
        _packages,
        _extras,
        _machine,
        lambda: _disk(root),
        _torch,
        lambda: _tracking(root),
        _ray,
    ]
    findings: list[Finding] = []
    for check in checks:
        try:
            findings += check()
        except Exception as error:  # noqa: BLE001 - a report about trouble must survive it
            findings.append(Finding(check.__name__.strip("_<>"), False, f"{type(error).__name__}: {error}"))
    return findings


def _python() -> list[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    ok = sys.version_info >= (3, 11)
    return [Finding("python", ok, version if ok else f"{version}; 3.11 or newer is needed")]


def _packages() -> list[Finding]:
    found = []
    for name in _PACKAGES:
        try:
            importlib.import_module(name)
            found.append(Finding(name, True, importlib.metadata.version(name)))
        except Exception as error:  # noqa: BLE001 - a package may fail to import in any way
            found.append(Finding(name, False, f"cannot be imported ({error}); install Sfumato again"))
    return found


def _extras() -> list[Finding]:
    return [
        Finding(module, True, "installed")
        if importlib.util.find_spec(module)
        else Finding(module, None, f"not installed; if you want it: {with_extra(extra)}")
        for module, extra in _EXTRAS.items()
    ]


def _machine() -> list[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    available = memory.available / 2**30
    shared = shutil.disk_usage(_SHARED).free / 2**30 if os.path.isdir(_SHARED) else None
    findings = [
        Finding("cores", True, str(ray_cluster.cores())),
        Finding(
            "memory",
            available >= _LEAST_MEMORY_GB,
            f"{available:.1f} GiB of {memory.total / 2**30:.1f} GiB available"
            + ("" if available >= _LEAST_MEMORY_GB else f"; at least {_LEAST_MEMORY_GB:g} are advised"),
        ),
    ]
    if shared is not None:
        ok = shared >= 0.6
        advice = "" if ok else "; Ray's object store wants 0.6, in a container raise --shm-size"
        findings.append(Finding("shared memory", ok, f"{shared:.1f} GiB free{advice}"))
    return findings


def _disk(root: Path) -> list[Finding]:
    findings = []
    for name, path in (("disk here", root), ("disk for Ray", temporary_root())):
        free = shutil.disk_usage(path).free / 2**30
        ok = free >= _LEAST_FREE_GB and os.access(path, os.W_OK)
        findings.append(
            Finding(
                name, ok, f"{free:.1f} GiB free in {path}" + ("" if ok else ", too little or not writable")
            )
        )
    return findings


def _torch() -> list[Finding]:
    import torch

    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        return [Finding("gpu", True, f"{torch.cuda.device_count()} x {', '.join(sorted(names))}")]
    return [Finding("gpu", None, "none; training runs on the CPU (parallel.gpus_per_worker=0)")]


def _tracking(root: Path) -> list[Finding]:
    database = root / "mlflow.db"
    if not database.exists():
        return [Finding("mlflow store", None, f"none yet in {root}; the first run makes it")]
    return [Finding("mlflow store", True, str(database))]


def _ray() -> list[Finding]:
    import ray

    with tempfile.TemporaryDirectory() as logs, ray_cluster.cluster(1, Path(logs)):
        one = ray.get(ray.remote(num_cpus=1)(lambda: 1).remote(), timeout=60)
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        where = os.environ.get("RAY_ADDRESS", "a private cluster on this machine")
        return [Finding("ray", one == 1, f"a task ran on {where}; {resources.get('CPU', 0):g} logical CPUs")]

"""The Ray cluster that a command runs on: an existing one (RAY_ADDRESS), or a private one on this machine.

A private cluster is quiet, bound to loopback, guarded by a token of its own, and declares enough logical
CPUs that Ray Data always has something to run on: if training workers held every CPU, it would wait
for ever, silently.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from sfumato.errors import CapabilityError
from sfumato.evaluation.config import EvaluateSettings
from sfumato.parallel.config import ParallelSettings
from sfumato.recipe import Recipe
from sfumato.runtime.cluster import forking, private_cluster, terminate
from sfumato.runtime.cluster.last_words import last_words

_PATIENCE_S = 5.0

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "2",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Ray lowers the priority of its workers; here the training worker is the one that matters.
    "RAY_worker_niceness": "0",
}


def cpus_to_train(recipe: Recipe, workers: int | None = None) -> int:
    """Logical CPUs of so many training workers and their read tasks; None: the recipe's number of workers."""
    parallel = recipe.parallel
    count = workers or parallel.workers
    own = math.ceil(count * parallel.cpus_per_worker) + count * recipe.data.read_tasks
    return own + cpus_during(recipe.evaluate)


def cpus_during(settings: EvaluateSettings) -> int:
    """Logical CPUs that evaluations take during training: their actors, and the task that directs several."""
    if settings.every is None:
        return 0
    directing = 1 if settings.actors_during > 1 else 0
    return math.ceil(settings.actors_during * settings.cpus_per_actor) + directing


def cpus_to_evaluate(recipe: Recipe) -> int:
    """Logical CPUs that evaluation takes."""
    return cpus_of(recipe.evaluate)


def cpus_of(settings: EvaluateSettings) -> int:
    """Logical CPUs of an evaluation's actors; of one, if it takes as many as have room."""
    actors = 1 if settings.actors == "auto" else settings.actors
    return math.ceil(actors * settings.cpus_per_actor)


def may_lose_nodes() -> bool:
    """Whether Ray Train looks for drained nodes: on existing clusters, not on a private one."""
    return os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1") != "0"


def patience(parallel: ParallelSettings) -> None:
    """Lets an elastic run start with fewer workers, instead of waiting long for those of a lost node."""
    if parallel.elastic:
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")


def threads_per_worker(parallel: ParallelSettings, cores: int) -> int:
    """Torch threads of a worker: the recipe's number, else an equal share of the cores."""
    return parallel.threads_per_worker or max(1, cores // parallel.workers)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def warnings(parallel: ParallelSettings) -> list[str]:
    """Notes for the user before training starts on this machine."""
    available = cores()
    if not os.environ.get("RAY_ADDRESS") and parallel.workers > available and not parallel.gpus_per_worker:
        return [
            (
                f"parallel.workers={parallel.workers} on {available} cores: workers take turns on the cores, "
                f"so expect no gain over parallel.workers={available}"
            )
        ]
    return []


@contextlib.contextmanager
def cluster(
    cpus: int,
    logs: Path,
    *,
    least: int | None = None,
    gpus: float = 0,
    dashboard: bool = False,
    modules: Sequence[str] = (),
) -> Iterator[None]:
    """Connects to a cluster with so many logical CPUs, or `least`. A private one's logs are moved to `logs`,
    and its workers start with `modules` imported.

    A private one has a `dashboard` (on loopback, behind the token) for code that asks Ray about the state of
    actors, as Ray Train does to free the resources of killed processes.

    Raises CapabilityError if an existing cluster has less, naming what is missing.
    """
    os.environ.update({key: value for key, value in _QUIET.items() if key not in os.environ})
    if _connected():
        _check_resources(least or cpus, gpus)
        yield
        return
    with last_words() as words, terminate.like_ctrl_c():
        if os.environ.get("RAY_ADDRESS"):
            opened: contextlib.AbstractContextManager[None] = _existing(logs)
        else:
            opened = private_cluster.private(
                max(cpus, cores()), logs, dashboard=dashboard, words=words, modules=modules
            )
        with opened:
            _check_resources(least or cpus, gpus)
            yield


def workers_ready(modules: Sequence[str]) -> contextlib.AbstractContextManager[object]:
    """While the block runs, a process imports these modules for the workers of a later private `cluster`.

    Enter it before other work of the command, such as packing data.
    """
    os.environ.update({key: value for key, value in _QUIET.items() if key not in os.environ})
    return forking.ready(modules, private_cluster.LOOPBACK)


def _connected() -> bool:
    # Not imported here if nobody has: Ray reads its variables, which _private sets, at import.
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


@contextlib.contextmanager
def _existing(logs: Path) -> Iterator[None]:
    _check_answers(os.environ["RAY_ADDRESS"])
    import ray

    try:
        with terminate.held_back():
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise CapabilityError(
            f"no Ray cluster answers at RAY_ADDRESS={os.environ['RAY_ADDRESS']}: {str(error).splitlines()[0]}"
        ) from error
    with private_cluster.messages_to(logs):
        try:
            yield
        finally:
            ray.shutdown()


def _check_answers(address: str) -> None:
    """Check that the cluster answers; Ray itself would retry for minutes. Raises CapabilityError."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():
        return  # "auto" and the like: Ray knows where to look
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE_S):
            pass
    except OSError as error:
        raise CapabilityError(
            f"no Ray cluster answers at RAY_ADDRESS={address}: {error}; start it, or unset RAY_ADDRESS for a "
            "private cluster on this machine"
        ) from error


def check_custom_resources(parallel: ParallelSettings) -> None:
    """Raises CapabilityError if the connected cluster lacks parallel.resources_per_worker."""
    import ray

    have = ray.cluster_resources()  # type: ignore[no-untyped-call]
    for name, amount in parallel.resources_per_worker.items():
        needed = amount * parallel.least_workers
        if have.get(name, 0) < needed:
            raise CapabilityError(
                f"the Ray cluster has {have.get(name, 0):g} of resource {name!r} and {needed:g} are needed "
                "(parallel.workers, or min_workers, x parallel.resources_per_worker): start nodes that have "
                "it (ray start --resources), or leave it out"
            )


def _check_resources(cpus: int, gpus: float) -> None:
    import ray

    have = ray.cluster_resources()  # type: ignore[no-untyped-call]
    if have.get("CPU", 0) < cpus:
        raise CapabilityError(
            f"the Ray cluster has {have.get('CPU', 0):g} CPUs and {cpus} are needed (parallel.workers, "
            "or min_workers, x (parallel.cpus_per_worker + data.read_tasks), or evaluate.actors): lower one "
            "or add nodes"
        )
    if have.get("GPU", 0) < gpus:
        raise CapabilityError(
            f"the Ray cluster has {have.get('GPU', 0):g} GPUs and {gpus:g} are needed (parallel.workers, or "
            "min_workers, x parallel.gpus_per_worker, and evaluate.gpus_per_actor): lower one or add nodes"
        )

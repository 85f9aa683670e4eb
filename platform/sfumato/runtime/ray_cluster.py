"""The Ray cluster that a command runs on: one that exists (RAY_ADDRESS), or a private one on this machine.

A private cluster is quiet, bound to loopback, guarded by a token of its own, and declares enough logical
CPUs that Ray Data always has something to run on: with every CPU held by training workers it would wait
for ever without a word.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from sfumato.errors import CapabilityError
from sfumato.evaluation.config import EvaluateSettings
from sfumato.parallel.config import ParallelSettings
from sfumato.recipe import Recipe

log = logging.getLogger(__name__)

_OBJECT_STORE_BYTES = 1 << 29
_PATIENCE_S = 5.0
_ATTEMPTS = 3

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Ray lowers the priority of its workers; here the training worker is the one that matters.
    "RAY_worker_niceness": "0",
}
_LOOPBACK = {
    # A cluster of one machine: Ray then keeps every socket on 127.0.0.1.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "GLOO_SOCKET_IFNAME": "lo",
}


def cpus_to_train(recipe: Recipe) -> int:
    """Logical CPUs that training takes: its workers' and those of their read tasks."""
    parallel = recipe.parallel
    own = math.ceil(parallel.workers * parallel.cpus_per_worker) + parallel.workers * recipe.data.read_tasks
    return own + cpus_during(recipe.evaluate)


def cpus_during(settings: EvaluateSettings) -> int:
    """Logical CPUs that evaluations take while training goes on: their actors, and who directs several."""
    if settings.every is None:
        return 0
    directing = 1 if settings.actors_during > 1 else 0
    return math.ceil(settings.actors_during * settings.cpus_per_actor) + directing


def cpus_to_evaluate(recipe: Recipe) -> int:
    """Logical CPUs that evaluation takes."""
    return cpus_of(recipe.evaluate)


def cpus_of(settings: EvaluateSettings) -> int:
    """Logical CPUs of an evaluation's actors; of one, where it takes as many as there is room for."""
    actors = 1 if settings.actors == "auto" else settings.actors
    return math.ceil(actors * settings.cpus_per_actor)


def threads_per_worker(parallel: ParallelSettings, cores: int) -> int:
    """Torch threads of a worker: as the recipe says, else an equal share of the cores."""
    return parallel.threads_per_worker or max(1, cores // parallel.workers)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def warnings(parallel: ParallelSettings) -> list[str]:
    """What the user should know before training starts on this machine."""
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
def cluster(cpus: int, logs: Path, *, gpus: float = 0, dashboard: bool = False) -> Iterator[None]:
    """Connected to a cluster with at least so many logical CPUs. Logs of a private one end in `logs`.

    A private one has a `dashboard` (on loopback, behind the token) for those who ask Ray about the state of
    actors, as Ray Train does to give back what a process that was killed held.

    Raises CapabilityError when an existing cluster has less, naming what is missing.
    """
    os.environ.update({key: value for key, value in _QUIET.items() if key not in os.environ})
    if _connected():
        opened: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    elif os.environ.get("RAY_ADDRESS"):
        opened = _existing()
    else:
        opened = _private(max(cpus, cores()), logs, dashboard=dashboard)
    with opened:
        _check_resources(cpus, gpus)
        yield


def _connected() -> bool:
    # Not imported here if nobody has: Ray reads its variables, which _private sets, at import.
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


@contextlib.contextmanager
def _existing() -> Iterator[None]:
    _check_answers(os.environ["RAY_ADDRESS"])
    import ray

    # Ray prints what its daemons report on standard output, which belongs to the command's result.
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise CapabilityError(
            f"no Ray cluster answers at RAY_ADDRESS={os.environ['RAY_ADDRESS']}: {str(error).splitlines()[0]}"
        ) from error
    with contextlib.redirect_stdout(sys.stderr):
        try:
            yield
        finally:
            ray.shutdown()


def _check_answers(address: str) -> None:
    """Ray itself would knock for minutes where nobody is. Raises CapabilityError."""
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


@contextlib.contextmanager
def _private(cpus: int, logs: Path, *, dashboard: bool) -> Iterator[None]:
    # Ray's sockets have paths of at most 107 characters, so it cannot live in the run's folder.
    home = Path(tempfile.mkdtemp(prefix="sfumato-"))
    token = home / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    variables = {**_LOOPBACK, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    imported_before = "ray" in sys.modules
    import ray

    if imported_before:
        _read_variables_again()
    try:
        with _messages_to(logs):
            try:
                _start(cpus, home, logs, dashboard=dashboard)
                yield
            finally:
                ray.shutdown()
    finally:
        _keep_logs(home, logs)
        shutil.rmtree(home, ignore_errors=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _read_variables_again()  # so that this process may open or join another cluster


def _start(cpus: int, home: Path, logs: Path, *, dashboard: bool) -> None:
    """Ray gives its processes 30 s, which an overloaded machine may take: it is started anew then."""
    import ray

    for attempt in range(1, _ATTEMPTS + 1):
        folder = home / str(attempt)
        try:
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=dashboard,
                dashboard_port=_free_port() if dashboard else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                _temp_dir=str(folder),
            )
            return
        except Exception as error:  # Ray raises plain ones here, mostly when its processes are late
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            ray.shutdown()
            _end_processes_of(folder)
            if attempt == _ATTEMPTS:
                raise CapabilityError(
                    f"Ray did not start on this machine: {reason} Is it overloaded, or out of memory or "
                    f"disk? Ray's logs are in {logs / 'ray'}"
                ) from error
            log.warning("Ray did not start (%s); trying again", reason)


def _end_processes_of(folder: Path) -> None:
    """End what a start that failed left behind, so that it does not register late."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if str(folder) in " ".join(process.cmdline()):
                process.kill()
                process.wait(5)


def _free_port() -> int:
    """A port of loopback for the dashboard, so that two sweeps on one machine do not meet."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _messages_to(logs: Path) -> Iterator[None]:
    """What Ray's daemons report goes to a file: Ray prints it on standard output, where results belong."""
    logs.mkdir(parents=True, exist_ok=True)
    with (logs / "ray-messages.txt").open("a") as messages, contextlib.redirect_stdout(messages):
        yield


def _read_variables_again() -> None:
    """Ray reads its variables at import; after that, this makes it see what they are now."""
    from ray._private import ray_constants
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    wanted = os.environ.get(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR)
    ray_constants.ENABLE_RAY_CLUSTER = wanted == "1" if wanted else not ray_constants.IS_WINDOWS_OR_OSX


def _keep_logs(home: Path, logs: Path) -> None:
    for source in sorted(home.glob("*/session_latest/logs")):
        with contextlib.suppress(OSError, shutil.Error):
            shutil.copytree(source.resolve(), logs / "ray", dirs_exist_ok=True)


def check_custom_resources(parallel: ParallelSettings) -> None:
    """Raises CapabilityError where the connected cluster lacks parallel.resources_per_worker."""
    import ray

    have = ray.cluster_resources()  # type: ignore[no-untyped-call]
    for name, amount in parallel.resources_per_worker.items():
        needed = amount * parallel.workers
        if have.get(name, 0) < needed:
            raise CapabilityError(
                f"the Ray cluster has {have.get(name, 0):g} of resource {name!r} and {needed:g} are needed "
                "(parallel.workers x parallel.resources_per_worker): start nodes that have it (ray start "
                "--resources), or leave it out"
            )


def _check_resources(cpus: int, gpus: float) -> None:
    import ray

    have = ray.cluster_resources()  # type: ignore[no-untyped-call]
    if have.get("CPU", 0) < cpus:
        raise CapabilityError(
            f"the Ray cluster has {have.get('CPU', 0):g} CPUs and {cpus} are needed (parallel.workers x "
            "(parallel.cpus_per_worker + data.read_tasks), or evaluate.actors): lower one or add nodes"
        )
    if have.get("GPU", 0) < gpus:
        raise CapabilityError(
            f"the Ray cluster has {have.get('GPU', 0):g} GPUs and {gpus:g} are needed (parallel.workers x "
            "parallel.gpus_per_worker): lower one of them or add nodes"
        )

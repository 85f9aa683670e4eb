"""A single-machine Ray cluster for the duration of a command: quiet, on loopback, with its own token."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from sfumato.errors import CapabilityError
from sfumato.runtime.cluster import forking, terminate
from sfumato.runtime.cluster.daemons import deaf_to_signals
from sfumato.runtime.cluster.last_words import LOST_GCS, LastWords
from sfumato.runtime.cluster.patience import patience
from sfumato.runtime.cluster.scratch import scratch_folder

log = logging.getLogger(__name__)

_OBJECT_STORE_BYTES = 1 << 29
_ATTEMPTS = 3
# A socket's path has 107 bytes at most: Ray takes 64 of them for `/session_<time>_<pid>/sockets/plasma_store`
# and `private` 19 for `/sfumato-<random>/1`.
_LONGEST_ROOT = 107 - 64 - 19
LOOPBACK = {
    # A cluster of one machine: Ray then keeps every socket on 127.0.0.1.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "GLOO_SOCKET_IFNAME": "lo",
    # Nobody drains its node, and to look for that takes a process.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Ray would hold back the driver until its first workers are there, for ever if these come too late. They
    # start when they are needed, after the process from which they are forked has imported everything.
    "RAY_prestart_worker_first_driver": "0",
    "RAY_worker_register_timeout_seconds": "240",
    # Ray ends its daemon where its agents, two processes of Python, are not there in time.
    "RAY_agent_register_timeout_ms": "120000",
}


@contextlib.contextmanager
def private(
    cpus: int, logs: Path, *, dashboard: bool, words: LastWords, modules: Sequence[str] = ()
) -> Iterator[None]:
    """Connects to a cluster on this machine alone, with so many logical CPUs. Its logs go to `logs`.

    Its workers have imported `modules`, or those of the fork server that is already there. Where its GCS ends
    inside the block, `words` says so, and the process ends.
    """
    with forking.ready(modules, LOOPBACK) as server, scratch_folder("sfumato-", temporary_root()) as home:
        token = home / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        forks = server.variables() if server else {}
        secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        with _variables({**LOOPBACK, **secret, **forks}):
            import ray

            try:
                with messages_to(logs):
                    try:
                        _start(cpus, home, logs, dashboard=dashboard, forks=bool(forks), words=words)
                        if server:
                            server.wait()
                        finish = functools.partial(_end_without_gcs, home, logs)
                        with words.while_alive(_gcs_runs(), LOST_GCS, finish):
                            yield
                    finally:
                        ray.shutdown()
            finally:
                _keep_logs(home, logs)


def _gcs_runs() -> Callable[[], bool]:
    """Asks whether the process without which the cluster knows nothing is there."""
    worker: Any = importlib.import_module("ray._private.worker")
    started = worker._global_node.all_processes["gcs_server"][0].process
    return lambda: started.poll() is None


def _end_without_gcs(home: Path, logs: Path) -> None:
    """What `ray.shutdown` and the folder's own end would do, which wait for the GCS."""
    _keep_logs(home, logs)
    _end_processes_of(home)
    shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """Sets these variables for Ray while the block runs, so that this process can open another later."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    if "ray" in sys.modules:
        read_variables_again()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        read_variables_again()


def temporary_root() -> Path:
    """The folder of a private cluster's files: TMPDIR, or /tmp if that is too long for Ray's sockets.

    A run's own folder usually is, as are TMPDIR on macOS and on many batch systems.
    """
    wanted = Path(tempfile.gettempdir())
    return wanted if len(os.fsencode(wanted)) <= _LONGEST_ROOT else Path("/tmp")  # noqa: S108


def _start(cpus: int, home: Path, logs: Path, *, dashboard: bool, forks: bool, words: LastWords) -> None:
    """What is late in spite of `patience`, as some processes are on an overloaded machine, starts again."""
    import ray

    for attempt in range(1, _ATTEMPTS + 1):
        folder = home / str(attempt)
        try:
            few = _few_processes(api_server=dashboard, forks=forks)
            with terminate.held_back(), few, deaf_to_signals(words), patience(folder):
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
        except BaseException as error:
            ray.shutdown()
            _end_processes_of(folder)
            if not isinstance(error, Exception):
                raise
            # Ray raises plain ones here, mostly when its processes are late.
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            if attempt == _ATTEMPTS:
                raise CapabilityError(
                    f"Ray did not start on this machine: {reason} Is it overloaded, or out of memory or "
                    f"disk? Ray's logs are in {logs / 'ray'}"
                ) from error
            log.warning("Ray did not start (%s); trying again", reason)


@contextlib.contextmanager
def _few_processes(*, api_server: bool, forks: bool) -> Iterator[None]:
    """Start Ray without the processes that a cluster of one machine has no use for.

    These are the autoscaler, the monitor that prints workers' logs, and unless `api_server` the process that
    serves the dashboard. Each imports all of Ray first: together they take half of the work of a start. With
    `forks`, workers come from the fork server.
    """
    node: Any = importlib.import_module("ray._private.node")
    parameter: Any = importlib.import_module("ray._private.parameter")
    everything, serve = parameter.RayParams, node.Node.start_api_server
    settings: dict[str, Any] = {"no_monitor": True, "include_log_monitor": False}
    if forks:
        settings["setup_worker_path"] = str(forking.STARTER)
    parameter.RayParams = functools.partial(everything, **settings)
    if not api_server:
        node.Node.start_api_server = lambda self, **settings: None
    try:
        yield
    finally:
        parameter.RayParams, node.Node.start_api_server = everything, serve


def _end_processes_of(folder: Path) -> None:
    """End the processes of a failed start, so that they do not register late, and those below them."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if str(folder) in " ".join(process.cmdline()):
                below = process.children(recursive=True)
                for each in (process, *below):
                    each.kill()
                process.wait(5)


def _free_port() -> int:
    """A port on loopback for the dashboard, so that two sweeps on one machine do not collide."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def messages_to(logs: Path) -> Iterator[None]:
    """Send reports of Ray's daemons to a file: Ray prints them on standard output, meant for results.

    Most are about what we do ourselves, such as "Task Worker.ready failed. ... killed by `ray.kill`".
    """
    logs.mkdir(parents=True, exist_ok=True)
    with (logs / "ray-messages.txt").open("a") as messages, contextlib.redirect_stdout(messages):
        yield


def read_variables_again() -> None:
    """Ray reads its variables at import; this makes it see their present values."""
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
            for folder in (logs / "ray", *(path for path in (logs / "ray").rglob("*") if path.is_dir())):
                folder.chmod(logs.stat().st_mode)  # Ray opens its own to everybody

"""Ray nodes as `ray start` makes them, for tests that need more than the private cluster of a command."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

RAY = str(Path(sys.executable).with_name("ray"))
# The entrypoint's `python` is the first one on the path of the node.
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

QUICK = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "500",
    "RAY_health_check_failure_threshold": "4",
    "RAY_worker_niceness": "0",
}
"""A node that is gone is noticed after two seconds instead of a minute, and where other work fills the cores
its workers get their share."""


@contextlib.contextmanager
def node(environment: dict[str, str], said: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A node while the block runs; what it prints goes to the file `said`.

    A folder of its own, as on a machine of its own: two nodes would unpack a job's code over each other.
    """
    if not any(argument.startswith("--temp-dir=") for argument in arguments):
        arguments += (f"--temp-dir={tempfile.mkdtemp(prefix='sf-')}",)
    with said.open("ab") as out:
        process = subprocess.Popen(
            [RAY, "start", "--block", "--object-store-memory=150000000", "--disable-usage-stats", *arguments],
            env={**os.environ, **environment, "PATH": PATH, "GLOO_SOCKET_IFNAME": "lo"},
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        end_group(process)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """`ray start` is one process group; parts of it outlive a TERM for long."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, sign)
            process.wait(timeout=5)
    with contextlib.suppress(ProcessLookupError):  # the leader may be gone before the rest of its group
        os.killpg(process.pid, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0

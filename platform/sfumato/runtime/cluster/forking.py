"""Starts a private cluster's workers by forking a process that has imported what they need.

A training run starts half a dozen processes of Ray and Ray Train, and one for each rank; each would import
Ray and mostly torch, as would a sweep's next trial and a restarted worker. Here one process
(`fork_server.py`) imports these once, beside whatever the command does first, and the workers are forked from
it: their pages are shared, and a start takes hundredths of a second instead of seconds.

Ray believes that it starts `worker_starter.py`, which asks for a fork and ends. Ray knows its workers by the
identity that it gave them, not by the process that it started. Without a server workers start as they always
do; existing clusters (RAY_ADDRESS) have none. Ray gives a worker so long to register, however slow the
machine is; so a cluster starts no worker before the server can fork (`wait`).
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from sfumato.runtime.cluster.worker_starter import ADDRESS

TRAINING = (
    "sfumato.runtime.training.worker",
    "sfumato.runtime.training.trainer",
    "ray.train.v2._internal.execution.controller.controller",
    "ray.data",
    "torch._dynamo",  # imported by an optimizer's first step
    "torch.distributed.checkpoint",
    "diffusers.models.unets.unet_2d",  # and with it what diffusers imports for any network
    "mlflow.store.tracking.sqlalchemy_store",
)
"""What training workers and Ray Train's own processes import."""
SWEEP = (*TRAINING, "sfumato.runtime.sweep.trial", "sfumato.runtime.training.ray_train")
"""The same for trials, each of which directs a training."""
STARTER = Path(__file__).with_name("worker_starter.py")
_SERVER = Path(__file__).with_name("fork_server.py")
_PATIENCE_S = 5.0


class ForkServer:
    """A fork server, as seen by the process that started it. It ends with that process."""

    def __init__(self, modules: Sequence[str], variables: dict[str, str]) -> None:
        self._address: str | None = None
        self._waited = False
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_SERVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # One thread, like every worker for which Ray reserves one CPU.
            env={"OMP_NUM_THREADS": "1", **os.environ, **variables},
            start_new_session=True,  # ctrl-C is for the command
        )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            order = {"path": sys.path, "modules": list(modules)}
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()

    def variables(self) -> dict[str, str]:
        """The variable by which workers find the server; none if it has ended."""
        if self._address is None:
            assert self._process.stdout is not None
            self._address = self._process.stdout.readline().decode().strip()
        return {ADDRESS: self._address} if self._address else {}

    def wait(self) -> None:
        """Wait, however long it takes, until the server has imported everything or has ended."""
        self.variables()
        if not self._waited:
            assert self._process.stdout is not None
            self._process.stdout.readline()
            self._waited = True

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        self._process.terminate()
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


_ready: list[ForkServer] = []


@contextlib.contextmanager
def ready(modules: Sequence[str], variables: dict[str, str]) -> Iterator[ForkServer | None]:
    """A server that imports these modules while the block runs; the one of an outer block, if there is one.

    None on an existing cluster. Enter it early: the server imports beside what this process does.
    """
    if os.environ.get("RAY_ADDRESS"):
        yield None
        return
    if _ready:
        yield _ready[-1]
        return
    server = ForkServer(modules, variables)
    _ready.append(server)
    try:
        yield server
    finally:
        _ready.remove(server)
        server.close()

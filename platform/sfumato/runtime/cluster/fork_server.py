"""The program from which a private cluster's workers are forked (see `forking.py`).

It reads a line of JSON (`path`: where modules are looked for, `modules`: those to import), writes the path of
its socket, imports, writes another line, and then serves. It ends with the process that holds the other end
of its standard input, and its workers end with it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

_OF_EVERY_WORKER = "ray._private.workers.default_worker"
_NO_JOB = "ffffffff"
"""Ray's identifier of no job. A worker's first task tells it the job, as in workers that Ray starts early."""
_FIRST_TO_END = "1000"
"""When memory is out, the kernel ends workers before Ray's daemons; the value is Ray's own."""
_PATIENCE_S = 30.0
"""For a starter that asks and then stops: others wait for it."""


def main() -> None:
    signal.signal(signal.SIGTERM, _leave)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    order = json.loads(sys.stdin.buffer.readline())
    sys.path[:] = order["path"]
    from sfumato.runtime.cluster.private_cluster import temporary_root
    from sfumato.runtime.cluster.scratch import scratch_folder

    with (
        scratch_folder("sfumato-forks-", temporary_root()) as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening,
    ):
        address = str(folder / "socket")
        listening.bind(address)
        listening.listen(128)
        print(address, flush=True)
        _preload(order["modules"])
        if _workers_would_differ():  # otherwise they start as Ray starts them
            print("ready", flush=True)
            _serve(listening)


def _leave(number: int, frame: FrameType | None) -> None:
    """Ends the server if the command has closed its end. SIGTERM for all of a batch job is the command's."""
    if select.select([sys.stdin], [], [], 0)[0]:
        sys.exit(0)


def _preload(modules: list[str]) -> None:
    # Ray reads both once, when it is imported. Workers end when the named process is gone: this one, which
    # ends with the command, as the cluster does.
    os.environ.update(RAY_JOB_ID=_NO_JOB, RAY_RAYLET_PID=str(os.getpid()))
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # a GPU's driver must not be loaded before a fork
    with _no_random_identities():
        for name in (_OF_EVERY_WORKER, *modules):
            with contextlib.suppress(ImportError):  # then whoever needs it says so
                importlib.import_module(name)
    gc.collect()
    gc.freeze()  # collections in workers leave these pages shared


@contextlib.contextmanager
def _no_random_identities() -> Iterator[None]:
    """Keep Ray from drawing a random number: its generator would be seeded here, once for all workers.

    They would then give the same identities to different tasks and objects. What draws while modules are
    imported is the decorator of actor classes.
    """
    import ray.actor

    actors: Any = ray.actor
    kind = actors.ActorClassID

    class Drawn:
        @staticmethod
        def from_random() -> Any:
            return kind(os.urandom(kind.size()))

    actors.ActorClassID = Drawn
    try:
        yield
    finally:
        actors.ActorClassID = kind


def _workers_would_differ() -> bool:
    """Whether two forks of this process draw different identities."""
    import ray

    drawn = []
    for _ in range(2):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writing, ray.NodeID.from_random().binary())
            os._exit(0)
        os.waitpid(child, 0)
        os.close(writing)
        drawn.append(os.read(reading, 64))
        os.close(reading)
    return drawn[0] != drawn[1]


def _serve(listening: socket.socket) -> None:
    from sfumato.runtime.cluster.worker_starter import FORKED, GO

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for workers
    while True:
        ready, _, _ = select.select([listening, sys.stdin.fileno()], [], [])
        if listening not in ready:
            return
        with listening.accept()[0] as asking, contextlib.suppress(OSError, ValueError):
            asking.settimeout(_PATIENCE_S)
            asking.sendall(GO)
            order, streams = _received(asking)
            try:
                if os.fork() == 0:
                    listening.close()
                    asking.close()
                    _become(order, streams)
            finally:
                for stream in streams:
                    os.close(stream)
            asking.sendall(FORKED)


def _received(asking: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The order, and its standard streams. Raises OSError or ValueError if whoever asked is gone."""
    size, streams, _, _ = socket.recv_fds(asking, 8, 3)
    data = bytearray()
    while len(data) < int.from_bytes(size, "big"):
        part = asking.recv(1 << 16)
        if not part:
            break
        data += part
    if len(streams) != 3:
        raise ValueError("no standard streams")
    return json.loads(data), list(streams)


def _become(order: dict[str, Any], streams: list[int]) -> NoReturn:
    """Turn this process, just forked, into the worker that Ray asked for."""
    code = 1
    try:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.setpgid(0, 0)  # Ray ends a worker's own children by their group
        for target, stream in enumerate(streams):
            os.dup2(stream, target)
            os.close(stream)
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_END)
        os.chdir(order["folder"])
        arguments = _surroundings(order)
        sys.argv = arguments
        sys.path.insert(0, str(Path(arguments[0]).parent))
        runpy.run_path(arguments[0], run_name="__main__")
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 0
    except BaseException:  # noqa: BLE001 - the end of the process, which its log explains
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _surroundings(order: dict[str, Any]) -> list[str]:
    """Set the worker's variables; returns its command line, without what Ray's setup_worker.py takes."""
    import numpy as np
    import ray
    from ray._private import utils

    from sfumato.runtime.cluster.private_cluster import read_variables_again

    os.environ.clear()
    os.environ.update(order["environment"])
    arguments = [text for text in order["arguments"] if not text.startswith("--language=")]
    context = "--serialized-runtime-env-context="
    for text in [text for text in arguments if text.startswith(context)]:
        arguments.remove(text)
        utils.update_envs(json.loads(text.removeprefix(context)).get("env_vars") or {})
    read_variables_again()
    worker: Any = ray._private.worker.global_worker
    worker.original_visible_accelerator_ids = utils.get_visible_accelerator_ids()
    utils.set_omp_num_threads_if_unset = _also_in_torch(utils.set_omp_num_threads_if_unset)
    np.random.seed()  # noqa: NPY002 - or all workers would share its state
    return arguments


def _also_in_torch(set_variable: Any) -> Any:
    """Ray's choice of OMP_NUM_THREADS, which libraries that are already loaded do not read again."""

    def with_threads() -> bool:
        changed: bool = set_variable()
        threads = int(os.environ.get("OMP_NUM_THREADS", "1").split(",")[0])
        if changed and threads > 1:
            import threadpoolctl

            threadpoolctl.threadpool_limits(threads)
            if "torch" in sys.modules:
                sys.modules["torch"].set_num_threads(threads)
        return changed

    return with_threads


if __name__ == "__main__":
    main()

"""Forks the ranks of training runs: imports of torch, DeepSpeed and the families are paid for once.

`python rank_server.py` reads jobs from standard input, a line of JSON each: `cases` (what `train_rank.train`
takes, one after another), `world_size`, `folder` of the logs, `environment`. The ranks are forked from this
process, which has imported everything, has no threads and has computed nothing: every job starts alike,
whatever the jobs before it did, and a rank may die. The answer is a line with the ranks' exit codes. This
process ends with the one that holds the other end of its standard input, and the ranks end with this process.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import torch

from sfumato.core.family import EmaOf, Family
from sfumato.errors import SfumatoError

GRACE_S = 5.0
"""How long ranks may go on after another has died: they wait for it, or are about to end as well."""


# What is imported at the moment of use, by the package or by the libraries under it.
_LATE = (
    "diffusers",
    "pyarrow.pandas_compat",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
)
_OF_DEEPSPEED = (
    "deepspeed",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # and with it torch's compiler
)


def preload() -> None:
    """Import all that ranks import."""
    from sfumato import families
    from sfumato.core.batch import DataSpec
    from sfumato.parallel import STRATEGIES

    for name in ("train_rank", *_LATE):
        importlib.import_module(name)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    for name in _OF_DEEPSPEED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    [kind.unavailable() for kind in STRATEGIES.values()]
    digits = DataSpec(1, 8, 8, tuple("0123456789"))
    for name in families.names():
        for config in families.config_class(name).variants().values():
            with contextlib.suppress(SfumatoError):  # one that needs a file of the user's
                _build(config.build(digits))


def _build(family: Family) -> None:
    """Its networks, without memory: what they import, they import when they are built."""
    with torch.device("meta"):
        for spec in family.nets.values():
            if not isinstance(spec, EmaOf):
                with contextlib.suppress(RuntimeError):  # it needs values, and there are none
                    spec.build()


def _end_with_parent() -> None:
    """However that ends; what a test run started does not outlive it."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def serve() -> None:
    _end_with_parent()
    preload()
    gc.collect()
    gc.freeze()  # collections in ranks leave these pages shared
    threads = {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}
    left = threads - {Path("/proc/self/comm").read_text().strip(), "jemalloc_bg_thd"}  # it minds forks itself
    assert not left, f"a process with the threads {left} cannot be forked"
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        answers.write(json.dumps(_run(json.loads(line))) + "\n")
        answers.flush()


def _run(job: dict[str, Any]) -> list[int]:
    """Exit codes by rank; a rank that was ended because another had failed has that of its signal."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    size = job["world_size"]
    ranks = {_fork(job, rank, port): rank for rank in range(size)}
    codes: dict[int, int] = {}
    until = float("inf")
    while len(codes) < size:
        time.sleep(0.01)
        for pid, status in [os.waitpid(pid, os.WNOHANG) for pid in ranks]:
            if pid:
                codes[ranks.pop(pid)] = code = os.waitstatus_to_exitcode(status)
                until = min(until, time.monotonic() + GRACE_S) if code else until
        if time.monotonic() > until:
            for left in ranks:
                os.kill(left, signal.SIGKILL)
            until = float("inf")
    return [codes[rank] for rank in range(size)]


def _fork(job: dict[str, Any], rank: int, port: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        _become(job, rank, port)
        import train_rank

        train_rank.main(job["cases"])
        code = 0
    except BaseException:  # noqa: BLE001 (this is the end of the process, which tells by its log)
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _become(job: dict[str, Any], rank: int, port: int) -> None:
    """The surroundings of one rank: its variables, its log, the paths of modules that the test wrote."""
    _end_with_parent()
    size = job["world_size"]
    log = os.open(Path(job["folder"]) / f"rank-{size}-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.environ.clear()
    os.environ.update(job["environment"])
    sys.path[:0] = [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]
    os.environ.update(
        {
            "OMP_NUM_THREADS": "1",
            "RANK": str(rank),
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "GLOO_SOCKET_IFNAME": "lo",
        }
    )


if __name__ == "__main__":
    serve()

"""Starts the ranks of training runs and reads what they wrote."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

SCRIPT = Path(__file__).with_name("rank_server.py")

Case = dict[str, Any]


def launch(folder: Path, *, world_size: int, expect: int = 0, **case: Any) -> dict[str, Tensor]:
    """Run one case to its end; the weights by "net/key", or nothing where the ranks were to die.

    `family` is the name of one of the package's families or the import path of another's configuration,
    `module:Class`; its module is looked for in this folder and on PYTHONPATH as it is now.
    """
    (result,) = launch_all(folder, [case], world_size=world_size, expect=expect)
    if isinstance(result, str):
        raise AssertionError(result)
    return result


def launch_all(
    folder: Path, cases: list[Case], *, world_size: int, expect: int = 0
) -> list[dict[str, Tensor] | str]:
    """Run the cases one after another, each in `world_size` processes of its own.

    For each the weights, averages and losses, or why it failed. A case is what `train_rank.train` takes.
    """
    return [
        _launched(folder / f"{number}", [case], world_size=world_size, expect=expect)[0]
        for number, case in enumerate(cases)
    ]


def launch_together(folder: Path, cases: list[Case], *, world_size: int) -> list[dict[str, Tensor] | str]:
    """The same in one set of processes, which forking, connecting and first calls cost only once.

    Those after a case that fails have processes of their own.
    """
    found: list[dict[str, Tensor] | str] = []
    while len(found) < len(cases):
        part = folder / f"from-{len(found)}"
        found += _launched(part, cases[len(found) :], world_size=world_size)
    return found


def _launched(
    folder: Path, cases: list[Case], *, world_size: int, expect: int = 0
) -> list[dict[str, Tensor] | str]:
    """What the cases up to the first one that failed have left, in processes that run all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    outs = [folder / f"out-{number}.safetensors" for number in range(len(cases))]
    codes = _server().run(
        {
            "cases": [{**case, "out": str(out)} for case, out in zip(cases, outs, strict=True)],
            "world_size": world_size,
            "folder": str(folder),
            "environment": dict(os.environ),
        }
    )
    if expect:
        assert all(code == expect for code in codes), f"ranks exited with {codes}"
        return [{}]
    begun = [out for out in outs if out.with_suffix(".begun").is_file()]
    if any(codes) and not any(_failure(out).is_file() for out in begun):
        logs = "\n".join(path.read_text()[-2000:] for path in sorted(folder.glob("rank-*.log")))
        return [
            *map(load_file, begun[:-1]),
            f"the case was never finished; ranks exited with {codes}\n{logs}",
        ]
    return [_failure(out).read_text() if _failure(out).is_file() else load_file(out) for out in begun]


def _failure(out: Path) -> Path:
    """Where a case's ranks say why they failed."""
    return out.with_suffix(".error")


class _Server:
    """The process that forks ranks (rank_server.py); it lives as long as this one."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        atexit.register(self._end)

    def run(self, job: dict[str, Any]) -> list[int]:
        """Exit codes by rank."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        assert answer, f"the server of ranks ended: {process.wait()}"
        found: list[int] = json.loads(answer)
        return found

    def _end(self) -> None:
        self._process.kill()  # and with it the ranks
        self._process.wait()


@cache
def _server() -> _Server:
    return _Server()

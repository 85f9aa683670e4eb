"""Starts the ranks of training runs as processes and reads what they wrote."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

SCRIPT = Path(__file__).with_name("train_rank.py")

Case = dict[str, Any]


def launch(folder: Path, *, world_size: int, expect: int = 0, **case: Any) -> dict[str, Tensor]:
    """Run one case to its end; the weights by "net/key", or nothing where the ranks were to die."""
    (result,) = launch_all(folder, [case], world_size=world_size, expect=expect)
    if isinstance(result, str):
        raise AssertionError(result)
    return result


def launch_all(
    folder: Path, cases: list[Case], *, world_size: int, expect: int = 0, timeout: float = 800
) -> list[dict[str, Tensor] | str]:
    """Run the cases one after another in the same `world_size` processes.

    For each the weights, averages and losses, or why it failed. A case is what `train_rank.train` takes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, case in enumerate(cases):
        case["out"] = str(folder / f"out-{world_size}-{number}.safetensors")
    path = folder / f"cases-{world_size}.json"
    path.write_text(json.dumps(cases))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(world_size):
        env = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "GLOO_SOCKET_IFNAME": "lo",
        }
        log = (folder / f"rank-{world_size}-{rank}.log").open("w")
        ranks.append(
            subprocess.Popen(
                [sys.executable, "-W", "ignore", str(SCRIPT), str(path)],
                env=env,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        )
    codes = [rank.wait(timeout=timeout) for rank in ranks]
    if expect:
        assert all(code == expect for code in codes), f"ranks exited with {codes}"
        return [{} for _ in cases]
    return [_result(Path(case["out"]), codes, folder) for case in cases]


def _result(out: Path, codes: list[int], folder: Path) -> dict[str, Tensor] | str:
    if out.is_file():
        return load_file(out)
    failure = out.with_suffix(".error")
    if failure.is_file():
        return failure.read_text()
    logs = "\n".join(path.read_text()[-2000:] for path in sorted(folder.glob("rank-*.log")))
    return f"the case was never finished; ranks exited with {codes}\n{logs}"

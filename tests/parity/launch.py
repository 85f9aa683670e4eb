"""Starts the ranks of a training run as processes and reads what they wrote."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

SCRIPT = Path(__file__).with_name("train_rank.py")


def launch(folder: Path, *, world_size: int, expect: int = 0, **job: object) -> dict[str, Tensor]:
    """Run `world_size` ranks to their end; the weights by "net/key", or nothing where they were to die."""
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / f"out-{world_size}.safetensors"
    path = folder / "job.json"
    path.write_text(json.dumps({**job, "out": str(out)}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(world_size):
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        if world_size > 1:
            env |= {
                "RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "GLOO_SOCKET_IFNAME": "lo",
            }
        ranks.append(subprocess.Popen([sys.executable, str(SCRIPT), str(path)], env=env))
    codes = [rank.wait(timeout=800) for rank in ranks]
    assert all(code == expect for code in codes), f"ranks exited with {codes}"
    return load_file(out) if expect == 0 else {}

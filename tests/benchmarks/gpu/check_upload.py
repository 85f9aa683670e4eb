"""What moving data costs the training thread: images to the device, weights back for a checkpoint.

Images travel as 8-bit values from pinned memory and are converted on the device. A batch is copied while the
device is busy with a matrix product of about a step's length; what the thread waits beyond that is the data
wait, which stays under 1 % on a GPU. Bits after the copy equal those of the CPU.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch

from sfumato.core.batch import HostBatch, to_device

WAIT = 0.01


def run(check: Any) -> Iterator[tuple[str, bool | None, dict[str, Any]]]:
    """Two lines."""
    rows, side = (8, 16) if check.tiny else (256, 256)
    images = torch.randint(0, 256, (rows, 3, side, side), dtype=torch.uint8)
    host = HostBatch({"image": images})
    same = torch.equal(
        to_device(host, check.device)["image"].cpu(), to_device(host, torch.device("cpu"))["image"]
    )
    size = 64 if check.tiny else 8_192
    matrix = torch.randn(size, size, device=check.device)

    def busy() -> None:
        for _ in range(2 if check.tiny else 20):
            torch.mm(matrix, matrix)

    alone = _seconds(check, busy)

    def both() -> None:
        busy()
        to_device(host, check.device)

    wait = max(0.0, _seconds(check, both) / alone - 1)
    gpu = check.device.type == "cuda"
    figures = {"same_bits": same, "wait": f"{wait:.2%}", "step_ms": round(alone * 1e3, 2)}
    yield f"{rows} images of {side}x{side} beside a step", same and (not gpu or wait < WAIT), figures
    weights = torch.randn(1_000 if check.tiny else 100_000_000, device=check.device)

    def back() -> None:
        weights.cpu()

    seconds = _seconds(check, back)
    yield "weights to the host", None, {"gib_per_s": round(weights.nbytes / 2**30 / seconds, 2)}


def _seconds(check: Any, action: Any, rounds: int = 5) -> float:
    """The median of a few."""
    found = []
    for _ in range(rounds):
        check.synchronise()
        start = time.perf_counter()
        action()
        check.synchronise()
        found.append(time.perf_counter() - start)
    return sorted(found)[rounds // 2]

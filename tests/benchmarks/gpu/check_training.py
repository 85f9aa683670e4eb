"""A run continued from its middle ends with the same bits, under every strategy that one rank can have.

The real loop with clipping, averages and its optimizer (fused on CUDA) trains a DCGAN: two networks and batch
normalisation. Weights, moments and averages of the continued run equal those of the unbroken one; those of
ddp and fsdp, with one rank over NCCL (gloo on a CPU), agree with single to 1e-5.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from sfumato.core.batch import DataSpec, MicroBatch, Piece
from sfumato.core.family import FamilyConfig
from sfumato.core.progress import Progress
from sfumato.families import config_class
from sfumato.parallel import ParallelSettings, Placement, make
from sfumato.parallel.strategy import Strategy
from sfumato.training.config import TrainSettings
from sfumato.training.loop import Hook, Trainer, install

DATA = DataSpec(1, 8, 8, ("a", "b"))
ROWS, STEPS = 8, 6
TOLERANCE = 1e-5
State = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Middle:
    """A run at half of its length: what a checkpoint holds."""

    state: State
    own: State
    progress: Progress


def run(check: Any) -> Iterator[tuple[str, bool | None, dict[str, Any]]]:
    """A line a strategy."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    config = next(iter(config_class("gan").variants().values()))
    reference: State = {}
    with one_rank(check.device):
        for name in ("single", "ddp", "fsdp"):
            end, middle = _train(config, name, check.device)
            again, _ = _train(config, name, check.device, middle)
            same = end.keys() == again.keys() and all(torch.equal(end[key], again[key]) for key in end)
            reference = reference or end
            apart = max(_apart(reference[key], end[key]) for key in reference)
            figures = {"same_bits": same, "apart": f"{apart:.1e}"}
            yield f"{name}: continued; against single", same and apart < TOLERANCE, figures


def _train(
    config: FamilyConfig, name: str, device: torch.device, start: Middle | None = None
) -> tuple[State, Middle]:
    """All that a checkpoint would hold after the last step, and halfway."""
    settings = TrainSettings(images=STEPS * ROWS, batch=ROWS, log_every=STEPS * ROWS, preview_samples=0)
    family = config.build(DATA)
    strategy = make(ParallelSettings(strategy=name), Placement(0, 1, device))
    install(family, strategy, seed=0, first=lambda: _micro(0))
    kept: list[Middle] = []

    def keep(progress: Progress) -> None:
        if progress.images < settings.images:
            kept.append(Middle(_whole(strategy), trainer.state(), progress))

    trainer = Trainer(family, strategy, settings, seed=0, streams=1, hooks=[Hook(ROWS * STEPS // 2, keep)])
    first = 0
    if start is not None:
        strategy.load(start.state)
        trainer.resume(start.progress.images, start.progress.step, start.own)
        first = start.progress.images // ROWS
    trainer.run([_micro(index)] for index in range(first, 100 * STEPS))
    return _whole(strategy), (kept or [start])[0]  # type: ignore[return-value]  # one of the two is there


def _whole(strategy: Strategy) -> State:
    """Its state on the CPU, copied."""
    return {
        key: (value.full_tensor() if isinstance(value, DTensor) else value).detach().cpu().clone()
        for key, value in strategy.state().items()
    }


def _micro(index: int) -> MicroBatch:
    """Batch `index` of the order, the same for every run."""
    generator = torch.Generator().manual_seed(index)
    image = torch.rand(ROWS, *DATA.shape, generator=generator) * 2 - 1
    batch = {"image": image, "label": torch.randint(DATA.num_classes, (ROWS,), generator=generator)}
    return MicroBatch(batch, (Piece(0, 0, ROWS),))


def _apart(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape or not a.numel():
        return 0.0 if a.shape == b.shape else float("inf")
    return ((a - b).abs().max() / a.abs().max().clamp(min=1e-6)).item()


@contextmanager
def one_rank(device: torch.device) -> Iterator[None]:
    """A process group of this process alone, on this machine's loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    init = {"init_method": f"tcp://127.0.0.1:{port}", "rank": 0, "world_size": 1}
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", **init)  # type: ignore[arg-type]
    try:
        yield
    finally:
        dist.destroy_process_group()
